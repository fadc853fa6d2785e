"""A trained run with id maps, its bundle, and its test rows with source ids."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.sid.catalog import Catalog, load_catalog
from tests.small_log import write_small_log
from tests.train.refusals import recipe_of, start
from tests.train.test_other_data import TEST, run_of, write_maps


class World(NamedTuple):
    """run: trained. bundle: exported from it, f32, calibrated. rows: of the test split, as a raw log has them, parquet.
    probability_N: by the trained model."""

    folder: Path
    run: Path
    bundle: Path
    rows: Path
    probability_N: np.ndarray


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = write_small_log(tmp_path_factory.mktemp("exported"))
    whole = load_catalog(folder / "catalog")
    Catalog(whole.item_ids_N[:50], whole.codes_NL[:50], whole.codebook_sizes).save(folder / "catalog")
    write_maps(folder / "data")
    model = {
        "embedding_dim": 8,
        "context": ["user_id", "cat_a"],
        "item": {"kind": "sid_coord", "history": ["hid", "sid"]},
    }
    assert start(recipe_of(folder, train={"epochs": 2, "runs": str(folder / "runs")}, model=model)) == 0
    words = ["export", str(run_of(folder)), str(folder / "bundle"), "--store", "f32", "--calibrate", "test"]
    assert cli.main(words) == 0
    write_rows(folder / "data" / TEST, folder / "rows.parquet")
    found = pq.read_table(run_of(folder) / "predictions_test.parquet")["probability"].to_numpy()
    return World(folder, run_of(folder), folder / "bundle", folder / "rows.parquet", found)


def write_rows(log: Path, rows: Path) -> None:
    """The rows of a log file with source ids in place of ids; 0 becomes a missing id."""
    table = pq.read_table(log)
    for column in ("user_id", "item_id", "cat_a"):
        texts = [f"{column}-{number}" if number else None for number in table[column].to_pylist()]
        table = table.set_column(table.column_names.index(column), column, pa.array(texts))
    history = [[f"item_id-{number}" for number in each] for each in table["history"].to_pylist()]
    pq.write_table(table.set_column(table.column_names.index("history"), "history", pa.array(history)), rows)
