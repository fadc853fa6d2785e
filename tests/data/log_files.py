"""Small logs for tests of the data room: any rows, any row groups, any fault."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.config.item import HidItem
from sidrec.config.model import ModelConfig
from sidrec.config.recipe import DataConfig
from sidrec.data.batch import Batch
from sidrec.data.item_tables import item_tables
from sidrec.data.loader import SplitLoader, open_split
from sidrec.schema import LOG, LogFile, Manifest, load_manifest, log_schema, save_manifest

IDS = {"user_id": 50, "item_id": 30, "cat_a": 7}
SPLIT = "train"


def manifest_of(*files: LogFile) -> Manifest:
    return Manifest("test", 0, IDS, ("int_a", "int_b"), ("stat_e",), 50, {SPLIT: files})


def table_of(rows: int, first: int = 0) -> pa.Table:
    """Rows that keep the contract, sorted by time. int_a is the row's number, so that rows can be told apart."""
    rng = np.random.default_rng(first)
    number = np.arange(first, first + rows)
    columns = {
        "label": (number % 2).astype(np.float32),
        "timestamp": 1000 + number // 3,
        "user_id": number % 50,
        "item_id": rng.integers(1, 30, rows),
        "int_a": number.astype(np.float32),
        "int_b": rng.random(rows, dtype=np.float32),
        "cat_a": number % 7,
        "history": [rng.integers(1, 30, n).tolist() for n in rng.integers(0, 9, rows)],
        "stat_e": (number % 11).astype(np.float32),
    }
    return pa.table(columns, schema=log_schema(manifest_of()))


@dataclass(frozen=True)
class Log:
    """A data folder with one split."""

    folder: Path

    def file(self, index: int = 0) -> Path:
        return self.folder / LOG / f"{SPLIT}/{index}.parquet"

    @property
    def manifest(self) -> Manifest:
        return load_manifest(self.folder / LOG)

    def loader(
        self,
        *,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        context: tuple[str, ...] = ("user_id", "cat_a"),
        split: str | tuple[str, ...] = SPLIT,
        **data: object,
    ) -> SplitLoader:
        config = {"batch_size": 16, "lanes": 4, "shuffle_rows": 10, "history_length": 5, "workers": 0} | data
        model = ModelConfig(item=HidItem(), context=context)
        return open_split(
            DataConfig(path=self.folder, catalog=self.folder, **config),  # type: ignore[arg-type]
            model,
            split,
            rank=rank,
            world=world,
            seed=seed,
            shuffle=shuffle,
            tables=item_tables(model.item, self.manifest, None),
            manifest=self.manifest,
        )


def write_log(folder: Path, tables: Sequence[pa.Table], group_rows: int = 8) -> Log:
    """Writes one file per table, and a manifest that fits them."""
    log = Log(folder)
    log.file().parent.mkdir(parents=True)
    files = []
    for index, table in enumerate(tables):
        pq.write_table(table, log.file(index), row_group_size=group_rows)
        times = table["timestamp"].drop_null().to_pylist()
        files.append(LogFile(f"{SPLIT}/{index}.parquet", len(table), times[0], times[-1]))
    save_manifest(manifest_of(*files), folder / LOG)
    return log


def log_of(folder: Path, rows: int, group_rows: int = 8) -> Log:
    """A sound log of `rows` rows in files of at most 40."""
    starts = range(0, rows, 40)
    return write_log(folder, [table_of(min(40, rows - first), first) for first in starts], group_rows)


def row_numbers(batches: Iterator[Batch]) -> list[list[int]]:
    """The rows of every batch, padding as -1."""
    return [batch.row_B.tolist() for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    """All rows but padding."""
    return [row for batch in batches for row in batch if row >= 0]
