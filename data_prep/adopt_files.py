"""The Parquet files of a log that another program wrote: which there are, and what their footers say.

A split is a folder log/SPLIT, or log/split=SPLIT as Spark's partitionBy("split") writes it. It holds files at any
depth; names that begin with _ or . are skipped, as Spark does.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from sidrec import schema
from sidrec.errors import ContractError
from sidrec.io.files import readable
from sidrec.schema import INT64, LARGEST_TABLE, ListColumn, Manifest, same_type
from sidrec.text import did_you_mean, near_file

from .adopt_report import FIXED, NUMBERS, Problems, contract_type, is_list, missing_remedy, type_remedy
from .splits import SPLITS

FOOTER_THREADS = 8
SUFFIX = ".parquet"
HIVE_SPLIT = "split="
SPARK_VERSION = b"org.apache.spark.version"
LARGE_GROUP = 1 << 19  # rows; the reader holds a decoded row group for each lane
MOST_ITEMS = 1 << 31  # item ids are int32 in batches
ORDER = 'write each split with .repartitionByRange(n, "timestamp").sortWithinPartitions("timestamp")'


@dataclass(frozen=True)
class GivenFile:
    """A file of a split. path: relative to the log folder, with slashes. groups: rows of each row group.

    history_entries: entries of all histories, for the size of a sample. writer: the program that wrote the file.
    """

    split: str
    path: str
    groups: tuple[int, ...]
    arrow: pa.Schema
    history_entries: int
    writer: str

    @property
    def rows(self) -> int:
        return sum(self.groups)

    def type_of(self, name: str) -> pa.DataType | None:
        """The type of a column; None if the file has no or several columns of that name."""
        places = self.arrow.get_all_field_indices(name)
        return self.arrow.field(places[0]).type if len(places) == 1 else None


def given_files(log: Path, problems: Problems, notes: list[str]) -> list[GivenFile]:
    """The files of all splits: train, validation, test, then others; sorted by path within each.

    Adds problems of files that cannot be read, and notes on what is skipped. Raises ContractError without a log folder.
    """
    if not log.is_dir():
        expected = "a folder with a folder of Parquet files for each split"
        raise ContractError(log, expected, f"no such folder{near_file(log)}")
    paths = [(split, path) for split, folder in _splits(log, problems) for path in _paths(log, folder, problems, notes)]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        found = list(pool.map(lambda pair: _footer(log, *pair), paths))
    for each in found:
        if isinstance(each, ContractError):
            problems.found("a whole Parquet file", *each.args[::2])
    files = [each for each in found if isinstance(each, GivenFile)]
    for split in sorted({file.split for file in files} - set(SPLITS)):
        near = did_you_mean(split, SPLITS)
        notes.append(
            f"split {split!r} is none of {', '.join(SPLITS)}, which recipes read unless they name others{near}"
        )
    largest = max((group for file in files for group in file.groups), default=0)
    if largest > LARGE_GROUP:
        notes.append(
            f"the largest row group has {largest:,} rows, and the reader decodes one for each lane; "
            'Spark: .option("parquet.block.size", 16 << 20) makes smaller ones'
        )
    return files


def _splits(log: Path, problems: Problems) -> list[tuple[str, Path]]:
    found = []
    for path in sorted(log.iterdir()):
        if path.name == "_delta_log":
            problems.found("plain Parquet files, not a Delta table", path, "its files may hold removed rows", DELTA)
        if path.name.startswith(("_", ".")) or path.name == schema.MANIFEST:
            continue
        if path.is_dir():
            found.append((unquote(path.name.removeprefix(HIVE_SPLIT)), path))
        elif path.suffix == SUFFIX:
            problems.found("files in a folder of their split, such as log/train", path, "")
    if not found:
        problems.found("a folder for each split, such as log/train", log, "none", what="folders")
    rank = {split: place for place, split in enumerate(SPLITS)}
    return sorted(found, key=lambda pair: (rank.get(pair[0], len(rank)), pair))


DELTA = 'write a copy: spark.read.format("delta").load(...).write.parquet(...)'


def _paths(log: Path, folder: Path, problems: Problems, notes: list[str]) -> list[str]:
    root, found, others = log.resolve(), [], []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if inside[-1] == "_temporary":
            problems.found("a job that has ended", path, "", "wait for the job, or remove what it left")
        if inside[-1] == "_delta_log":
            problems.found("plain Parquet files, not a Delta table", path, "its files may hold removed rows", DELTA)
        if any(part.startswith(("_", ".")) for part in inside) or path.is_dir():
            continue
        if path.suffix != SUFFIX:
            others.append(path)
        elif not path.resolve().is_relative_to(root):
            problems.found("files inside the log folder", path, f"a link to {path.resolve()}", "move or copy the file")
        else:
            found.append(path.relative_to(log).as_posix())
    if others:
        notes.append(
            f"{folder}: files whose names do not end in {SUFFIX} are not read: {len(others):,}, {others[0]} first"
        )
    if not found:
        problems.found("Parquet files in the folder of a split", folder, "none", what="folders")
    return found


def _footer(log: Path, split: str, path: str) -> GivenFile | ContractError:
    try:
        with readable(log / path, "a whole Parquet file"):
            footer = pq.read_metadata(log / path)
            arrow = footer.schema.to_arrow_schema()
    except ContractError as error:
        return error
    groups = tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))
    names = [footer.schema.column(place).path.partition(".")[0] for place in range(footer.num_columns)]
    place = names.index(schema.HISTORY) if schema.HISTORY in names else None
    entries = 0
    if place is not None:
        entries = sum(footer.row_group(index).column(place).num_values for index in range(footer.num_row_groups))
    spark = (footer.metadata or {}).get(SPARK_VERSION)
    writer = f"Spark {spark.decode(errors='replace')}" if spark else str(footer.created_by or "an unknown program")
    return GivenFile(split, path, groups, arrow.remove_metadata(), entries, writer)


# Columns.


def given_columns(files: Sequence[GivenFile], problems: Problems, notes: list[str]) -> Manifest:
    """A manifest of the files' columns, with no files, and with the most ids that are possible as ids.

    A column of the contract that any file has is expected in all of them. Adds problems of columns that are missing,
    given twice or of another type, and notes on columns that sidrec does not read.
    """
    names = dict.fromkeys([*FIXED, *(name for file in files for name in file.arrow.names)])
    first = {name: next((kind for file in files if (kind := file.type_of(name)) is not None), None) for name in names}
    wanted = {name: kind for name in names if (kind := contract_type(name, first[name])) is not None}
    for file in files:
        _check_columns(file, wanted, problems)
    unread = [name for name in names if name not in wanted]
    if unread:
        notes.append(f"columns that sidrec does not read: {', '.join(unread)}")
    ids = [name for name in wanted if name.startswith(schema.CATEGORICAL_PREFIX)]
    dense, stats, labels = ([name for name in wanted if name.startswith(prefix)] for prefix in NUMBERS)
    return Manifest(
        source="",
        seed=0,
        ids={schema.USER_ID: LARGEST_TABLE, schema.ITEM_ID: MOST_ITEMS, **dict.fromkeys(ids, LARGEST_TABLE)},
        dense=tuple(dense),
        stats=tuple(stats),
        labels=tuple(labels),
        history_length=0,
        splits={},
        lists={name: ListColumn(INT64[1], 0.0) for name in ids if is_list(wanted[name])},
    )


def _check_columns(file: GivenFile, wanted: dict[str, pa.DataType], problems: Problems) -> None:
    for name, kind in wanted.items():
        count = len(file.arrow.get_all_field_indices(name))
        if count != 1:
            remedy = missing_remedy(name, file.arrow.names, file.path) if not count else ""
            problems.found(f"column {name}: expected one, got {count or 'none'}", f"log/{file.path}", "", remedy)
            continue
        found = file.type_of(name)
        if not same_type(found, kind):
            rule = f"column {name}: expected {kind}, got {found}"
            problems.found(rule, f"log/{file.path}", "", type_remedy(name, found, kind))
