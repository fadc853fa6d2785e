"""Prepared Criteo files to a log that `sidrec train` reads: `python -m data_prep.criteo_log NPYDIR OUT --item C10`.

One categorical column is the item. Row order is time: a row's timestamp is its number. Criteo names no users: every
user_id is 0 and histories are empty, so the user metrics of such a log are those of one user. items.parquet lists every
item of the log; those that the train split does not have are cold, and their vectors are zeros.

Rows are read a range at a time: memory grows with the tables, and with the pairs of items and values that occur, not
with rows. Killed anywhere and started again, the same command goes on after its last finished file, or in the midst of
counting pairs, and leaves the same bytes. I item ids, M items that occur, D width.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from data_prep.command import refuse_flags, run
from data_prep.criteo_item_vectors import CoOccurrence
from data_prep.criteo_layout import CriteoLayout
from data_prep.criteo_log_files import STATS, CriteoLogFiles
from data_prep.criteo_rows import CATEGORICAL, DENSE
from data_prep.criteo_vocabulary import FIRST
from data_prep.item_table import vector_column
from data_prep.log_writer import ROW_GROUP
from data_prep.splits import SPLITS
from data_prep.work_folder import WorkFolder, file_facts
from sidrec import schema
from sidrec.schema import ContractError, Manifest


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
    """Replace OUT if it exists and holds nothing but what data_prep wrote."""

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
        refuse_flags(rules)


class LogItems(NamedTuple):
    """The M items of a log. ids_M: rising, without 0. impressions_M: rows of the train split, 0 for cold items."""

    ids_M: np.ndarray
    impressions_M: np.ndarray

    @classmethod
    def of(cls, layout: CriteoLayout, item: int, train_rows: int) -> "LogItems":
        (train_I,), (later_I,) = layout.counts([item], 0, train_rows), layout.counts([item], train_rows, layout.rows)
        ids_M = np.flatnonzero(train_I + later_I)
        ids_M = ids_M[ids_M != schema.UNKNOWN_ID]
        return cls(ids_M, train_I[ids_M])


def write_log(command: CriteoLogCommand) -> Manifest:
    """Writes the data folder, which appears when all is done. Raises ContractError for files that make no sense."""
    layout, item = CriteoLayout.open(command.npy), CATEGORICAL.index(command.item)
    bounds = split_bounds(layout, command)
    configuration = {
        "schema": schema.SCHEMA_VERSION,
        "files": file_facts(layout.files),
        **asdict(replace(command, out=command.out.resolve(), overwrite=False)),
    }
    work = WorkFolder.open(command.out, configuration, command.overwrite, (command.npy,))
    items = LogItems.of(layout, item, bounds["train"].stop)
    try:
        _write_items(work, layout, command, items)
    except ContractError:
        work.discard()
        raise
    manifest = _manifest(layout, command, items, bounds)
    files = CriteoLogFiles(layout, manifest, item)
    splits = {split: tuple(files.write(work.data / schema.LOG, split, rows)) for split, rows in bounds.items()}
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


def _write_items(work: WorkFolder, layout: CriteoLayout, command: CriteoLogCommand, items: LogItems) -> None:
    """items.parquet, unless it is there: impressions, vectors, and the values as the raw log has them."""
    path, item = work.data / schema.ITEMS, CATEGORICAL.index(command.item)
    if path.exists():
        return
    train_rows = split_bounds(layout, command)["train"].stop
    together = CoOccurrence.of(layout, item, train_rows, command.most_values, work.scratch / "pairs.npz")
    vectors_ID = together.vectors(command.width, command.seed)
    values, ids = layout.values(item), items.ids_M
    texts = [""] * len(ids) if values is None else [f"{values[i - FIRST]:08x}" if i >= FIRST else "" for i in ids]
    columns = {
        schema.ITEM_ID: pa.array(ids),
        schema.TRAIN_IMPRESSIONS: pa.array(items.impressions_M),
        "source_id": pa.array(texts, pa.string()),
        schema.BEHAVIOR: vector_column(vectors_ID[ids]),
    }
    partial = path.with_suffix(".partial")
    pq.write_table(pa.table(columns), partial, row_group_size=ROW_GROUP)
    partial.replace(path)


def _manifest(layout: CriteoLayout, command: CriteoLogCommand, items: LogItems, bounds: dict[str, range]) -> Manifest:
    """Without its files."""
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


if __name__ == "__main__":
    run(CriteoLogCommand, "data_prep.criteo_log")
