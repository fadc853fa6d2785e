"""Logs as a Spark job writes them: a prepared folder, cut into part files, without what only data_prep knows."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.adopt import AdoptCommand, adopt
from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from sidrec import schema
from tests.data_prep.event_lists import DAY

ROWS, USERS, ITEMS = 3000, 60, 40
TRAIN = "train/part-00000.parquet"


def prepare(folder: Path) -> Path:
    """A log of random clicks, prepared by data_prep into FOLDER/prepared: many rows of equal times, three splits."""
    random = np.random.default_rng(0)
    raw = {
        "user_id": random.integers(0, USERS, ROWS),
        "item_id": random.zipf(1.6, ROWS) % ITEMS,
        "timestamp": 20 * DAY + random.integers(0, 2000, ROWS) * 300,
        "label": random.integers(0, 2, ROWS),
        "device": random.choice(["tv", "phone", "desk"], ROWS),
        "tags": random.choice(["a|b", "b", "", "c|a|b"], ROWS),
        "like": random.integers(0, 2, ROWS),
    }
    pq.write_table(pa.table(raw), folder / "raw.parquet")
    columns = Columns(
        label_column="label",
        cat_columns=("device",),
        cat_list_columns=("tags",),
        list_separator="|",
        other_label_columns=("like",),
    )
    InteractionsCommand(
        folder / "raw.parquet", folder / "prepared", columns, LogSettings(history=5), vectors="none"
    ).run()
    return folder / "prepared"


def own_log(prepared: Path, folder: Path) -> Path:
    """A copy of the prepared log alone: no manifest, items or maps."""
    shutil.copytree(prepared / schema.LOG, folder / schema.LOG)
    (folder / schema.LOG / schema.MANIFEST).unlink()
    return folder


def run(data: Path, **flags: object) -> None:
    adopt(AdoptCommand(data, **flags))  # type: ignore[arg-type]


def edit(path: Path, change: Callable[[pa.Table], pa.Table], group_rows: int = 500) -> None:
    """Rewrites a file with changed rows, in small row groups."""
    table = change(pq.read_table(path))
    pq.write_table(table, path, row_group_size=group_rows)


def with_column(name: str, make: Callable[[pa.ChunkedArray], object]) -> Callable[[pa.Table], pa.Table]:
    """A change of one column: values, or an array of another type."""

    def change(table: pa.Table) -> pa.Table:
        made = make(table[name])
        array = made if isinstance(made, pa.ChunkedArray | pa.Array) else pa.array(made, table.schema.field(name).type)
        return table.set_column(table.column_names.index(name), name, array)

    return change


def cast(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return with_column(name, lambda column: column.cast(kind))


def put(name: str, **values: object) -> Callable[[pa.Table], pa.Table]:
    """Sets rows of a column: put("label", r3=2.0)."""

    def make(column: pa.ChunkedArray) -> list[object]:
        found = column.to_pylist()
        for row, value in values.items():
            found[int(row[1:])] = value
        return found

    return with_column(name, make)


def parts(table: pa.Table, folder: Path, rows: int) -> None:
    """Writes a folder of parts, as Spark does."""
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, len(table), rows)):
        pq.write_table(table.slice(first, rows), folder / f"part-{number:05d}-c0.snappy.parquet")
    (folder / "_SUCCESS").touch()
    (folder / "._SUCCESS.crc").write_bytes(b"crc")
