"""The files of a data folder: one Parquet file for each part and split of the log, and items.parquet.

Shapes: M selected rows of a batch, N rows of a batch.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sidrec import schema
from sidrec.io.files import read_json, replaced_file, write_json

from .events import Items
from .histories import Lists
from .item_vectors import vector_column
from .splits import BEFORE, SPLITS

ROW_GROUP = 16_384
ITEM_ROW_GROUP = 16_384


class LogWriter:
    """Writes the parts of a log, one file for each split of a part. Rows come in order.

    log: the folder. arrow: columns of every file. done: parts that are written, with their files and counts, each
    kept in a file of `folder`, so that another process goes on after them.
    """

    def __init__(self, log: Path, arrow: pa.Schema, folder: Path, parts: int) -> None:
        self._log, self._arrow, self._folder, self._parts = log, arrow, folder, parts
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def missing(self) -> int:
        """The first part that is not written; the number of parts if all are."""
        return next((part for part in range(self._parts) if not self._facts(part).exists()), self._parts)

    def write(self, batches: Iterator[tuple[np.ndarray, np.ndarray, pa.Table]]) -> Iterator[int]:
        """Writes rows that are sorted by part. batches: part and split of each row [N], and the rows.

        Yields the number of rows of each batch that was taken.
        """
        current: _Part | None = None
        for part_N, split_N, rows in batches:
            cuts = [0, *(np.flatnonzero(np.diff(part_N)) + 1), len(part_N)]
            for begin, end in pairwise(cuts):
                if begin == end:
                    continue
                if current is None or current.number != part_N[begin]:
                    self._finish(current)
                    current = _Part(self._log, self._arrow, int(part_N[begin]))
                current.add(split_N[begin:end], rows.slice(begin, end - begin))
            yield len(part_N)
        self._finish(current)

    def written(self) -> "WrittenParts":
        """Files and counts of all parts."""
        found = WrittenParts({split: [] for split in SPLITS}, Counter())
        for part in range(self._parts):
            raw = read_json(self._facts(part), "the files of a part")
            for split, entry in raw["files"].items():
                found.files[split].append(schema.LogFile(**entry))
            for name, count in raw["counts"].items():
                joined = max(found.counts[name], count) if name.endswith(LONGEST) else found.counts[name] + count
                found.counts[name] = joined
        return found

    def _facts(self, part: int) -> Path:
        return self._folder / f"part-{part:05d}.json"

    def _finish(self, part: "_Part | None") -> None:
        if part is not None:
            write_json(self._facts(part.number), part.finish(), one_writer=True)


@dataclass(frozen=True)
class WrittenParts:
    """files: split -> files, in time order. counts: "X rows" and "X positives", where X is a split, "new" (rows whose
    item was never shown before) or "idle" (rows whose item had positives, but no recent ones), and "before rows", which
    are in no split; "X ids" and "X longest" of each list column X.
    """

    files: dict[str, list[schema.LogFile]]
    counts: Counter[str]

    def list_columns(self) -> dict[str, schema.ListColumn]:
        """The cat_* columns of lists, as the manifest states them."""
        rows = sum(self.counts[f"{split} rows"] for split in SPLITS)
        names = [name.removesuffix(LONGEST) for name in self.counts if name.endswith(LONGEST)]
        return {
            name: schema.ListColumn(self.counts[name + LONGEST], self.counts[f"{name} ids"] / max(1, rows))
            for name in sorted(names)
        }


LONGEST = " longest"


class _Part:
    """The files of a part, which get their names at its end. Holds a row group of each split."""

    def __init__(self, log: Path, arrow: pa.Schema, number: int) -> None:
        self.number, self.counts = number, Counter[str]()
        self._log, self._arrow = log, arrow
        self._held: dict[str, list[pa.Table]] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._times: dict[str, tuple[int, int]] = {}

    def add(self, split_N: np.ndarray, rows: pa.Table) -> None:
        self.counts["before rows"] += int((split_N == BEFORE).sum())
        for place, split in enumerate(SPLITS):
            is_in_N = split_N == place
            if is_in_N.any():
                chosen = rows if is_in_N.all() else rows.filter(pa.array(is_in_N))
                self._count(split, chosen)
                first, last = (chosen[schema.TIMESTAMP][row].as_py() for row in (0, -1))
                self._times[split] = (self._times.get(split, (first, last))[0], last)
                self._held.setdefault(split, []).append(chosen)
                self._flush(split, ROW_GROUP)

    def finish(self) -> dict[str, object]:
        """Names the files. Returns them, and the counts, as JSON."""
        files = {}
        for split, (first, last) in self._times.items():
            self._flush(split, 1)
            self._writers[split].close()
            path = self._path(split)
            self._partial(split).replace(self._log / path)
            entry = schema.LogFile.of(self._log, path, self.counts[f"{split} rows"], first, last)
            files[split] = asdict(entry)
        return {"files": files, "counts": self.counts}

    def _path(self, split: str) -> Path:
        return Path(split) / f"part-{self.number:05d}.parquet"

    def _partial(self, split: str) -> Path:
        path = self._log / self._path(split)
        return path.with_name(path.name + ".partial")

    def _flush(self, split: str, least: int) -> None:
        """Writes row groups while at least `least` rows are held."""
        held = self._held[split]
        if sum(map(len, held)) < least:
            return
        rows = pa.concat_tables(held)
        if split not in self._writers:
            self._partial(split).parent.mkdir(parents=True, exist_ok=True)
            self._writers[split] = pq.ParquetWriter(self._partial(split), self._arrow, compression="zstd")
        begin = 0
        while len(rows) - begin >= least:
            self._writers[split].write_table(rows.slice(begin, ROW_GROUP), row_group_size=ROW_GROUP)
            begin = min(len(rows), begin + ROW_GROUP)
        self._held[split] = [rows.slice(begin)] if begin < len(rows) else []

    def _count(self, split: str, rows: pa.Table) -> None:
        positive_M = rows[schema.LABEL].to_numpy() > 0
        shown_M = rows["stat_exposures"].to_numpy() > 0
        idle_M = (rows["stat_clicks"].to_numpy() > 0) & (rows["stat_clicks_recent"].to_numpy() == 0)
        for name, chosen_M in ((split, np.ones_like(shown_M)), ("new", ~shown_M), ("idle", idle_M)):
            self.counts[f"{name} rows"] += int(chosen_M.sum())
            self.counts[f"{name} positives"] += int((positive_M & chosen_M).sum())
        for column in self._arrow:
            if pa.types.is_list(column.type) and column.name != schema.HISTORY:
                lengths_M = pc.list_value_length(rows[column.name]).to_numpy()
                self.counts[f"{column.name} ids"] += int(lengths_M.sum())
                self.counts[column.name + LONGEST] = max(self.counts[column.name + LONGEST], int(lengths_M.max()))


def write_items(
    path: Path,
    items: Items,
    train_impressions: np.ndarray,
    category_ids: Mapping[str, np.ndarray],
    list_ids: Mapping[str, Lists],
) -> None:
    """Writes items.parquet in one step.

    train_impressions, category_ids (by cat_* column): int64 per item id, 0 included. list_ids: the same for lists.
    """
    table = items.table
    table = table.add_column(0, schema.ITEM_ID, pa.array(np.arange(1, table.num_rows + 1)))
    table = table.add_column(1, schema.TRAIN_IMPRESSIONS, pa.array(train_impressions[1:]))
    for column, ids in category_ids.items():
        table = table.append_column(column, pa.array(ids[1:]))
    for column, lists in list_ids.items():
        table = table.append_column(column, lists.take(np.arange(1, table.num_rows + 1)).array())
    for column, (values, _) in items.numbers.items():
        table = table.append_column(column, pa.array(values, mask=np.isnan(values)))
    for column, vectors in items.vectors.items():
        table = table.append_column(column, vector_column(vectors))
    with replaced_file(path, one_writer=True) as partial:
        pq.write_table(table, partial, row_group_size=ITEM_ROW_GROUP)
