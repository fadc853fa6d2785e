"""Prepared Criteo files to a log that `sidrec train` reads: `python -m data_prep.criteo_log NPY OUT --item C10`.

One categorical column is the item. Rows are in order of time, so a row's timestamp is its number. Criteo names no
users: every user_id is 0 and histories are empty, so user metrics treat the log as that of one user. items.parquet
lists every item of the log. Items that the train split lacks are cold; their vectors are zeros.

Rows are read range by range: memory grows with the tables and with the pairs of items and values that occur, not with
rows. A killed command continues after its last finished file, or while counting pairs after the last snapshot, and
writes the same bytes.

Shapes: I item ids, M items that occur, J values of other columns, D width, N rows of a range or file.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from sidrec import schema
from sidrec.command_line import metavar
from sidrec.errors import ContractError
from sidrec.id_maps import save_source_ids
from sidrec.io.files import replaced_file
from sidrec.schema import LogFile, Manifest

from .as_of import Runs, Totals
from .command import WorkFolder, file_facts, load_snapshot, refuse_flags, rows_bar, run, save_snapshot
from .criteo_layout import CriteoLayout, RowRange
from .criteo_rows import CATEGORICAL, DENSE, FIRST, UNKNOWN, ValueCounts
from .item_vectors import vector_column
from .log_files import ROW_GROUP
from .splits import SPLITS

if TYPE_CHECKING:  # scipy is slow to import, so the help must not
    from scipy import sparse


@dataclass(frozen=True)
class CriteoLogCommand:
    """Writes log/ and items.parquet from the files of data_prep.criteo, with one column as the item."""

    npy: tyro.conf.Positional[Annotated[Path, metavar("NPY")]]
    """Folder that data_prep.criteo wrote."""
    out: tyro.conf.Positional[Annotated[Path, metavar("OUT")]]
    """Data folder to write."""
    item: Annotated[str, metavar("COLUMN")]
    """Categorical column that is the item, C1 to C26."""
    test_share: float = 0.1
    """Share of the rows, the last ones, in the split `test`."""
    validation_share: float = 0.1
    """Share of the rows in the split `validation`, directly before test; 0 leaves it out."""
    width: int = 64
    """Width of the item vectors."""
    most_values: int = 1000
    """Item vectors count this many values of every other column, the most frequent ones."""
    seed: int = 0
    """Seed of the item vectors."""
    overwrite: bool = False
    """Replace OUT if it exists and holds nothing but what data_prep wrote."""

    def run(self) -> None:
        self.check()
        manifest = write_log(self)
        rows = ", ".join(f"{manifest.rows(split):,} {split}" for split in manifest.splits)
        print(f"{self.out}: rows: {rows}; {manifest.protocol['items']:,} items of {self.item}")

    def check(self) -> None:
        """Raises ContractError that names the first flag whose value cannot be used."""
        shares = 0 < self.test_share < 1 and 0 <= self.validation_share < 1 - self.test_share
        rules = {
            "--item": (self.item in CATEGORICAL, "one of C1 to C26", self.item),
            "--width": (self.width >= 1, "at least 1", self.width),
            "--most-values": (self.most_values >= 1, "at least 1", self.most_values),
            "--seed": (self.seed >= 0, "at least 0", self.seed),
            "--test-share, --validation-share": (
                shares,
                "shares that leave something to test and to train on",
                (self.test_share, self.validation_share),
            ),
        }
        refuse_flags(rules)


class LogItems(NamedTuple):
    """The M items of a log. ids_M: ascending, without 0. impressions_M: rows of the train split, 0 for cold items."""

    ids_M: np.ndarray
    impressions_M: np.ndarray

    @classmethod
    def of(cls, layout: CriteoLayout, item: int, train_rows: int) -> "LogItems":
        (train_I,), (later_I,) = layout.counts([item], 0, train_rows), layout.counts([item], train_rows, layout.rows)
        ids_M = np.flatnonzero(train_I + later_I)
        ids_M = ids_M[ids_M != schema.UNKNOWN_ID]
        return cls(ids_M, train_I[ids_M])


@dataclass(frozen=True)
class WorkSizes:
    """Rows of a file of the log, of a range that is counted at a time, and between two snapshots of the counts."""

    file: int = 1 << 18
    range: int = 1 << 16
    snapshot: int = 1 << 24  # some minutes of work


def write_log(command: CriteoLogCommand, sizes: WorkSizes = WorkSizes()) -> Manifest:
    """Writes the data folder, which appears when all files are whole. Raises ContractError for invalid input."""
    layout, item = CriteoLayout.open(command.npy), CATEGORICAL.index(command.item)
    bounds = split_bounds(layout, command)
    configuration = {
        "schema": schema.SCHEMA_VERSION,
        "files": file_facts(layout.files),
        **asdict(replace(command, out=Path(os.path.realpath(command.out)), overwrite=False)),
    }
    work = WorkFolder.open(command.out, configuration, command.overwrite, (command.npy,))
    items = LogItems.of(layout, item, bounds["train"].stop)
    with work.discarded_on_bad_input():
        _write_items(work, layout, command, items, sizes)
    maps = _id_maps(work, layout, command)
    manifest = replace(_manifest(layout, command, items, bounds), id_maps=maps)
    files = CriteoLogFiles(layout, manifest, item, sizes.file)
    splits = {split: tuple(files.write(work.data / schema.LOG, split, rows)) for split, rows in bounds.items()}
    manifest = replace(manifest, splits=splits)
    schema.save_manifest(manifest, work.data / schema.LOG)
    work.publish()
    return manifest


def split_bounds(layout: CriteoLayout, command: CriteoLogCommand) -> dict[str, range]:
    """Rows of each split that is not empty, in order. Raises ContractError if train or test is empty."""
    test = int(layout.rows * (1 - command.test_share))
    validation = int(layout.rows * (1 - command.test_share - command.validation_share))
    if not 0 < validation <= test < layout.rows:
        raise ContractError(layout.folder, "enough rows for a train and a test split", f"{layout.rows} rows")
    bounds = zip(SPLITS, (range(validation), range(validation, test), range(test, layout.rows)), strict=True)
    return {split: rows for split, rows in bounds if rows}


def _write_items(
    work: WorkFolder, layout: CriteoLayout, command: CriteoLogCommand, items: LogItems, sizes: WorkSizes
) -> None:
    """Writes items.parquet, unless it exists: impressions, vectors, and the values in the raw log."""
    path, item = work.data / schema.ITEMS, CATEGORICAL.index(command.item)
    if path.exists():
        return
    train_rows = split_bounds(layout, command)["train"].stop
    pairs = CoOccurrence.of(layout, item, train_rows, command.most_values, work.scratch / "pairs.npz", sizes)
    vectors_ID = pairs.vectors(command.width, command.seed)
    values, ids = layout.values(item), items.ids_M
    texts = [""] * len(ids) if values is None else [f"{values[i - FIRST]:08x}" if i >= FIRST else "" for i in ids]
    columns = {
        schema.ITEM_ID: pa.array(ids),
        schema.TRAIN_IMPRESSIONS: pa.array(items.impressions_M),
        "source_id": pa.array(texts, pa.string()),
        schema.BEHAVIOR: vector_column(vectors_ID[ids]),
    }
    with replaced_file(path, one_writer=True) as partial:
        pq.write_table(pa.table(columns), partial, row_group_size=ROW_GROUP)


def _id_maps(work: WorkFolder, layout: CriteoLayout, command: CriteoLogCommand) -> dict[str, schema.MapDigest]:
    """Writes the id maps of a vocabulary; hashed ids have none. The id 1 stands for many values: its text is empty."""
    maps = {}
    for column, name in enumerate(CATEGORICAL):
        values_V = layout.values(column)
        if values_V is not None:
            target = schema.ITEM_ID if name == command.item else schema.CATEGORICAL_PREFIX + name
            maps[target] = save_source_ids(work.data, target, pa.chunked_array([[""], hexadecimal(values_V)]))
    return maps


def hexadecimal(values_V: np.ndarray) -> pa.StringArray:
    """uint32 values as text of 8 hexadecimal digits, as the raw log has them."""
    byte_VB = values_V.astype(">u4").view(np.uint8).reshape(-1, 4)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text_VD = np.stack([digits[byte_VB >> 4], digits[byte_VB & 15]], axis=2)
    offsets = np.arange(len(values_V) + 1, dtype=np.int64) * 8
    text = pa.LargeStringArray.from_buffers(len(values_V), pa.py_buffer(offsets), pa.py_buffer(text_VD.tobytes()))
    return text.cast(pa.string())


def _manifest(layout: CriteoLayout, command: CriteoLogCommand, items: LogItems, bounds: dict[str, range]) -> Manifest:
    """The manifest, without files."""
    context = {
        schema.CATEGORICAL_PREFIX + name: rows
        for name, rows in zip(CATEGORICAL, layout.table_rows, strict=True)
        if name != command.item
    }
    return Manifest(
        source=f"criteo {command.npy.resolve().name}",
        seed=command.seed,
        ids={schema.USER_ID: 1, schema.ITEM_ID: layout.table_rows[CATEGORICAL.index(command.item)], **context},
        dense=tuple(schema.DENSE_PREFIX + name for name in DENSE),
        stats=STATS,
        history_length=0,
        splits={},
        protocol={
            "item": f"column {command.item}; 0 where it is missing",
            "items": len(items.ids_M),
            "cold_items": int((items.impressions_M == 0).sum()),
            "ids": layout.ids_in_words,
            "user": "none: user_id is 0 in all rows, histories are empty",
            "timestamp": "the row's number: an order, no time",
            "split": {split: [rows.start, rows.stop] for split, rows in bounds.items()},
            "as_of": "stat_* count earlier rows of all splits with the same value in the item's column",
            "behavior": f"SVD of PPMI with the {command.most_values} most frequent values of every other column, "
            "from the train split alone; zeros for items that occur with none of them there",
        },
    )


# The files of the log. Those that a killed run finished are kept.


STATS = ("stat_exposures", "stat_clicks")


class CriteoLogFiles:
    """Writes the splits, which must come in order: statistics count all earlier rows. item: index of its column."""

    def __init__(self, layout: CriteoLayout, manifest: Manifest, item: int, file_rows: int) -> None:
        self._layout, self._item, self._file_rows = layout, item, file_rows
        self._arrow = schema.log_schema(manifest)
        self._totals = Totals.empty(layout.table_rows[item])

    def write(self, log: Path, split: str, rows: range) -> Iterator[LogFile]:
        """Writes the files of a split; each appears whole. Rows of files that exist are only counted."""
        (log / split).mkdir(parents=True, exist_ok=True)
        with rows_bar(f"writing {split}", len(rows)) as bar:
            for number, part in enumerate(self._layout.ranges(rows.start, rows.stop, self._file_rows)):
                path = Path(split) / f"part-{number:05d}.parquet"
                if not (log / path).exists():
                    with replaced_file(log / path, one_writer=True) as partial:
                        pq.write_table(self._table(part), partial, row_group_size=ROW_GROUP, compression="zstd")
                self._totals.add(part.ids()[:, self._item], part.labels())
                bar.update(part.rows)
                yield LogFile.of(log, path, part.rows, part.first, part.stop - 1)

    def _table(self, part: RowRange) -> pa.Table:
        id_NC, label_N, row_N = part.ids(), part.labels(), np.arange(part.first, part.stop)
        value_N = id_NC[:, self._item]
        runs = Runs.of(value_N, row_N)
        exposures_N = self._totals.rows[value_N] + runs.earlier_rows()
        clicks_N = self._totals.clicks[value_N] + runs.earlier_sum(label_N)
        columns = [
            label_N.astype(np.float32),
            row_N,
            np.zeros(len(row_N), np.int64),
            value_N.astype(np.int64),  # a missing value is the unknown item: both are 0
            *part.dense().T,
            *(id_NC[:, column].astype(np.int64) for column in range(len(CATEGORICAL)) if column != self._item),
            pa.ListArray.from_arrays(np.zeros(len(row_N) + 1, np.int32), pa.array([], pa.int64())),
            exposures_N.astype(np.float32),
            clicks_N.astype(np.float32),
        ]
        return pa.Table.from_arrays([pa.array(column) for column in columns], schema=self._arrow)


# Item vectors: a truncated SVD of the PPMI of items and values of the other columns.
#
# n_ij rows hold both item i and value j; n_i and n_j are its sums over values and over items, n over both.
# PPMI_ij = max(0, log(n_ij n / (n_i n_j))). The vectors are U S^(1/2) of its truncated SVD (Levy, Goldberg, Dagan,
# "Improving Distributional Similarity with Lessons Learned from Word Embeddings", TACL 2015, sections 2 and 3.3).


NO_VALUE = -1


@dataclass(frozen=True)
class CoOccurrence:
    """count_IJ: number of rows with item i and value j among the first rows of a log; scipy CSR, float64.

    Memory: 16 bytes per pair that occurs, about 100 while pairs are merged, and 4 bytes per row of every table. There
    are at most items * 25 * most_values pairs.
    """

    count_IJ: "sparse.csr_array"

    @classmethod
    def of(
        cls,
        layout: CriteoLayout,
        item: int,
        rows: int,
        most_values: int,
        snapshot: Path,
        sizes: WorkSizes = WorkSizes(),
    ) -> "CoOccurrence":
        """Counts pairs in the first `rows` rows. Missing values are not counted.

        most_values: values counted of each other column, the most frequent ones. snapshot: file with the counts so far;
        counting continues from it if it exists. Raises ContractError if the other columns have no values.
        """
        from scipy import sparse

        others = [column for column in range(len(layout.table_rows)) if column != item]
        values = _numbered_values(layout, others, rows, most_values)
        width = 1 + max(int(numbers.max()) for numbers in values)
        if width == 0:
            raise ContractError(
                layout.folder, f"values in other columns than {CATEGORICAL[item]}", "none in the train split"
            )
        numbered = dict(zip(others, values, strict=True))
        pair_P, count_P = _count_pairs(layout, item, rows, numbered, width, snapshot, sizes)
        place_P = np.divmod(pair_P.astype(np.int64), width)
        shape = (layout.table_rows[item], width)
        return cls(sparse.csr_array((count_P.astype(np.float64), place_P), shape=shape))

    def ppmi(self) -> "sparse.csr_array":
        """PPMI, [I, J]."""
        from scipy import sparse

        pairs = self.count_IJ.tocoo()
        of_item, of_value = pairs.sum(axis=1), pairs.sum(axis=0)
        expected = of_item[pairs.row] * of_value[pairs.col] / pairs.sum()
        values = np.maximum(np.log(pairs.data / expected), 0.0)
        return sparse.csr_array((values, (pairs.row, pairs.col)), shape=pairs.shape)

    def vectors(self, width: int, seed: int) -> np.ndarray:
        """float32 [I, D]; zeros for ids that occur with no value. D is `width`, or less if items or values are few.

        Raises ContractError if there are too few for a vector.
        """
        from scipy.sparse.linalg import svds

        ppmi_IJ = self.ppmi()
        known = np.flatnonzero(np.diff(self.count_IJ.indptr))
        width = min(width, len(known) - 1, ppmi_IJ.shape[1] - 1)
        if width < 1:
            raise ContractError("the train split", "at least two items and two values they occur with", "fewer")
        start = np.random.default_rng(seed).random(min(len(known), ppmi_IJ.shape[1]))
        left, strength, _ = svds(ppmi_IJ[known], k=width, v0=start)
        order = np.argsort(-strength)
        left_KD = left[:, order] * np.sign(left[:, order].sum(axis=0) + 1e-300)  # fixes the sign, free in an SVD
        vectors_ID = np.zeros((self.count_IJ.shape[0], width), np.float32)
        vectors_ID[known] = left_KD * np.sqrt(strength[order])
        return vectors_ID


def _count_pairs(
    layout: CriteoLayout,
    item: int,
    rows: int,
    values: dict[int, np.ndarray],
    width: int,
    snapshot: Path,
    sizes: WorkSizes,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs as item * width + value, ascending, and the count of each. values: column -> array from id to j."""
    pairs, done = ValueCounts(np.uint64), 0
    if snapshot.exists():
        kept = load_snapshot(snapshot)
        pairs.add(kept["pairs"], kept["counts"])
        done = int(kept["done"])
    with rows_bar("co-occurrence", rows) as bar:
        bar.update(done)
        for part in layout.ranges(done, rows, sizes.range):
            id_NC = part.ids()
            item_N = id_NC[:, item].astype(np.int64)
            value_NJ = np.stack([value_of_id[id_NC[:, column]] for column, value_of_id in values.items()], axis=1)
            known_NJ = (value_NJ != NO_VALUE) & (item_N != UNKNOWN)[:, None]
            pairs.count((item_N[:, None] * width + value_NJ)[known_NJ].astype(np.uint64))
            bar.update(part.rows)
            if part.stop - done >= sizes.snapshot:
                done = part.stop
                pair_P, count_P = pairs.total()
                save_snapshot(snapshot, pairs=pair_P, counts=count_P, done=done)
    return pairs.total()


def _numbered_values(layout: CriteoLayout, columns: list[int], rows: int, most: int) -> list[np.ndarray]:
    """For each column an array from id to j, int32; NO_VALUE where the id is missing or not among the `most`."""
    numbered, numbers = [], 0
    for count in layout.counts(columns, 0, rows):
        count[UNKNOWN] = 0
        kept = np.argsort(-count, kind="stable")[:most]
        kept = kept[count[kept] > 0]
        value_of_id = np.full(len(count), NO_VALUE, np.int32)
        value_of_id[kept] = np.arange(numbers, numbers + len(kept))
        numbered.append(value_of_id)
        numbers += len(kept)
    return numbered


if __name__ == "__main__":
    run(CriteoLogCommand, "data_prep.criteo_log", "data/criteo-npy data/criteo --item C10")
