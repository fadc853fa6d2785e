"""Prepared Criteo files to a log that `sidrec train` reads: `python -m data_prep.criteo_log NPYDIR OUT --item C10`.

One categorical column is the item. Row order is time: a row's timestamp is its number. Criteo names no users: every
user_id is 0 and histories are empty, so the user metrics of such a log are those of one user. Items that the train
split does not have are not known: their item_id is 0, and items.parquet does not list them.

An interrupted run begins anew. N rows of a file.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from data_prep.as_of import Runs, Totals
from data_prep.command import run
from data_prep.criteo_item_vectors import CoOccurrence
from data_prep.criteo_layout import CriteoLayout, RowRange
from data_prep.criteo_rows import CATEGORICAL, DENSE
from data_prep.criteo_vocabulary import FIRST
from data_prep.item_table import vector_column
from data_prep.log_writer import ROW_GROUP
from data_prep.progress import rows_bar
from data_prep.splits import SPLITS
from data_prep.work_folder import WorkFolder
from sidrec import schema
from sidrec.schema import ContractError, LogFile, Manifest

FILE_ROWS = 1 << 18
STATS = ("stat_exposures", "stat_clicks")


@dataclass(frozen=True)
class CriteoLogCommand:
    """Prepared Criteo files (data_prep.criteo) to log/ and items.parquet, with one column as the item."""

    npy: tyro.conf.Positional[Path]
    """Folder that data_prep.criteo wrote."""
    out: tyro.conf.Positional[Path]
    """Data folder to write."""
    item: str
    """The categorical column that is the item, C1 to C26."""
    test_share: float = 0.1
    """Share of the rows, the last ones, in the split `test`."""
    validation_share: float = 0.1
    """Share of the rows in the split `validation`, directly before test; 0 leaves it out."""
    width: int = 64
    """Width of the item vectors."""
    most_values: int = 1000
    """Values of every other column, its most frequent ones, that item vectors are made of."""
    seed: int = 0
    """Seed of the item vectors."""
    overwrite: bool = False
    """Replace OUT if it exists."""

    def run(self) -> None:
        self.check()
        manifest = write_log(self)
        told = ", ".join(f"{manifest.rows(split):,} {split}" for split in manifest.splits)
        print(f"{self.out}: rows: {told}; {manifest.protocol['items']:,} items of {self.item}")

    def check(self) -> None:
        """Raises ContractError naming the flag whose value makes no sense."""
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
        for flag, (fine, expected, got) in rules.items():
            if not fine:
                raise ContractError(flag, expected, got)


def write_log(command: CriteoLogCommand) -> Manifest:
    """Writes the data folder, which appears when all is done. Raises ContractError for files that make no sense."""
    layout, item = CriteoLayout.open(command.npy), CATEGORICAL.index(command.item)
    bounds = split_bounds(layout, command)
    configuration = {"npy": str(command.npy.resolve()), **asdict(replace(command, overwrite=False))}
    work = WorkFolder.open(command.out, configuration, command.overwrite)
    try:
        impressions = _train_impressions(layout, item, bounds["train"].stop)
        together = CoOccurrence.of(layout, item, bounds["train"].stop, command.most_values)
        _write_items(work.data / schema.ITEMS, impressions, together.vectors(command.width, command.seed), layout, item)
        manifest = _manifest(layout, command, item, bounds, impressions)
        writer = _Rows(layout, manifest, item, impressions > 0)
        splits = {split: tuple(writer.files(work.data / schema.LOG, split, bounds[split])) for split in bounds}
    except ContractError:
        work.discard()
        raise
    manifest = replace(manifest, splits=splits)
    schema.save_manifest(manifest, work.data / schema.LOG)
    work.publish()
    return manifest


def split_bounds(layout: CriteoLayout, command: CriteoLogCommand) -> dict[str, range]:
    """The rows of every split that has some, in order. Raises ContractError when train or test has none."""
    test = int(layout.rows * (1 - command.test_share))
    validation = int(layout.rows * (1 - command.test_share - command.validation_share))
    if not 0 < validation <= test < layout.rows:
        raise ContractError(layout.folder, "enough rows for a train and a test split", f"{layout.rows} rows")
    bounds = zip(SPLITS, (range(validation), range(validation, test), range(test, layout.rows)), strict=True)
    return {split: rows for split, rows in bounds if rows}


def _train_impressions(layout: CriteoLayout, item: int, rows: int) -> np.ndarray:
    """Rows of the train split by item id; of id 0 none."""
    count = np.zeros(layout.table_rows[item], np.int64)
    for part in layout.ranges(0, rows, FILE_ROWS):
        ids, times = np.unique(part.id_NC[:, item], return_counts=True)
        count[ids] += times
    count[schema.UNKNOWN_ID] = 0
    return count


def _write_items(path: Path, impressions: np.ndarray, vectors_ID: np.ndarray, layout: CriteoLayout, item: int) -> None:
    """Items of the train split, by id: impressions, vector, and the value as the raw log has it."""
    ids = np.flatnonzero(impressions)
    values = layout.values(item)
    texts = [""] * len(ids) if values is None else [f"{values[i - FIRST]:08x}" if i >= FIRST else "" for i in ids]
    columns = {
        schema.ITEM_ID: pa.array(ids),
        schema.TRAIN_IMPRESSIONS: pa.array(impressions[ids]),
        "source_id": pa.array(texts, pa.string()),
        schema.BEHAVIOR: vector_column(vectors_ID[ids]),
    }
    pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP)


def _manifest(
    layout: CriteoLayout, command: CriteoLogCommand, item: int, bounds: dict[str, range], impressions: np.ndarray
) -> Manifest:
    """Without its files."""
    context = {
        schema.CATEGORICAL_PREFIX + name: rows
        for column, (name, rows) in enumerate(zip(CATEGORICAL, layout.table_rows, strict=True))
        if column != item
    }
    return Manifest(
        source=f"criteo {command.npy.resolve().name}",
        seed=command.seed,
        ids={schema.USER_ID: 1, schema.ITEM_ID: layout.table_rows[item], **context},
        dense=tuple(schema.DENSE_PREFIX + name for name in DENSE),
        stats=STATS,
        history_length=0,
        splits={},
        protocol={
            "item": f"column {command.item}; 0 where it is missing or the train split does not have it",
            "items": int((impressions > 0).sum()),
            "ids": layout.ids_in_words,
            "user": "none: user_id is 0 in all rows, histories are empty",
            "timestamp": "the row's number: an order, no time",
            "split": {split: [rows.start, rows.stop] for split, rows in bounds.items()},
            "as_of": "stat_* count earlier rows of all splits with the same value in the item's column",
            "behavior": f"SVD of PPMI with the {command.most_values} most frequent values of every other column, "
            "from the train split alone",
        },
    )


class _Rows:
    """Turns row ranges into the log's files; the splits have to be written in order, for the statistics."""

    def __init__(self, layout: CriteoLayout, manifest: Manifest, item: int, known: np.ndarray) -> None:
        self._layout, self._item, self._known = layout, item, known
        self._arrow = schema.log_schema(manifest)
        self._totals = Totals.empty(layout.table_rows[item])

    def files(self, log: Path, split: str, rows: range) -> Iterator[LogFile]:
        (log / split).mkdir(parents=True, exist_ok=True)
        with rows_bar(f"writing {split}", len(rows)) as bar:
            for number, part in enumerate(self._layout.ranges(rows.start, rows.stop, FILE_ROWS)):
                path = Path(split) / f"part-{number:05d}.parquet"
                table = self._table(part)
                pq.write_table(table, log / path, row_group_size=ROW_GROUP, compression="zstd")
                bar.update(len(table))
                yield LogFile(str(path), len(table), part.first, part.first + len(table) - 1)

    def _table(self, part: RowRange) -> pa.Table:
        value_N, row_N = part.id_NC[:, self._item], np.arange(part.first, part.first + len(part.label_N))
        runs = Runs.of(value_N, row_N)
        exposures_N = self._totals.rows[value_N] + runs.earlier_rows()
        clicks_N = self._totals.clicks[value_N] + runs.earlier_sum(part.label_N)
        self._totals.add(value_N, part.label_N, row_N)
        context = [column for column in range(len(CATEGORICAL)) if column != self._item]
        columns = [
            part.label_N.astype(np.float32),
            row_N,
            np.zeros(len(row_N), np.int64),
            np.where(self._known[value_N], value_N, schema.UNKNOWN_ID).astype(np.int64),
            *part.dense_NX.T,
            *(part.id_NC[:, column].astype(np.int64) for column in context),
            pa.ListArray.from_arrays(np.zeros(len(row_N) + 1, np.int32), pa.array([], pa.int64())),
            exposures_N.astype(np.float32),
            clicks_N.astype(np.float32),
        ]
        return pa.Table.from_arrays([pa.array(column) for column in columns], schema=self._arrow)


if __name__ == "__main__":
    run(CriteoLogCommand, "data_prep.criteo_log")
