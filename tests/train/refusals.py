"""Breaking a small data folder, and reading what the command line says of it. Everything runs in this process."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.config import Recipe, save
from sidrec.io.places import local_path
from tests.small_log import small_recipe

TRAIN, TEST, ITEMS = "data/log/train/part-0.parquet", "data/log/test/part-0.parquet", "data/items.parquet"
CODES = "catalog/codes.parquet"


def recipe_of(folder: Path, **sections: object) -> Recipe:
    return small_recipe(folder, **{"train": {"epochs": 1}, **sections})


def start(recipe: Recipe, *flags: str) -> int:
    path = local_path(recipe.data.path, "data.path").parent / "recipe.yaml"
    save(recipe, path)
    return cli.main(["train", str(path), *flags])


def refusal(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The sentence on stderr, without the program's name."""
    said = capsys.readouterr().err
    assert status == 2, said
    assert said.startswith("sidrec: error: "), said
    assert "Traceback" not in said
    return said.removeprefix("sidrec: error: ").removesuffix("\n")


def edit(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path, row_group_size=50)


def put(path: Path, column: str, row: int, value: object) -> None:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        index = table.schema.get_field_index(column)
        return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))

    edit(path, change)


def drop(path: Path, column: str) -> None:
    edit(path, lambda table: table.drop_columns([column]))


def cast(path: Path, column: str, kind: pa.DataType) -> None:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index(column), column, table[column].cast(kind))

    edit(path, change)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
