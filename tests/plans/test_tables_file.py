"""Tables files, the built-in one, and how ids fall on rows."""

from pathlib import Path

import numpy as np
import pytest

from sidrec.config import ConfigError
from sidrec.plans.tables_file import is_tables, read_tables
from sidrec.plans.workload import ZipfLaw

TEXT = """
name: mine
rows_per_step: 1000
tables:
- {name: item, rows: 50, width: 8, features: 2, ids_per_bag: 3.5}
- {name: user, rows: 9, width: 16, zipf: 0}
"""


def test_a_file_becomes_a_collection_and_its_loads(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(TEXT)
    assert is_tables(str(path))
    tables = read_tables(str(path))
    item, user = tables.collection().embedding_bag_configs()
    assert (item.num_embeddings, item.embedding_dim, item.feature_names) == (50, 8, ["item_0", "item_1"])
    assert (user.num_embeddings, user.embedding_dim, user.feature_names) == (9, 16, ["user"])
    loads = tables.loads(rows_per_rank=250)
    assert loads["item"].bags == 250
    assert loads["item"].ids_per_bag == (3.5, 3.5)
    assert loads["user"].popularity is not None
    assert loads["user"].popularity.share(0, 3) == pytest.approx(1 / 3)


def test_the_built_in_tables_are_mlperfs() -> None:
    tables = read_tables("criteo-mlperf")
    assert len(tables.tables) == 26
    assert sum(table.rows for table in tables.tables) == 204_184_588
    assert sum(table.ids_per_bag for table in tables.tables) == 214  # as in the benchmark's own record format
    assert {table.width for table in tables.tables} == {128}


def test_every_mistake_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text("name: mine\ntables:\n- {name: a.b, rows: 0, width: 6}\n- {name: c, rows: 1, width: 4, zip: 1}\n")
    with pytest.raises(ConfigError) as refusal:
        read_tables(str(path))
    for place in ("rows_per_step", "tables.0.name", "tables.0.rows", "tables.0.width", "tables.1.zip"):
        assert place in str(refusal.value), place
    path.write_text("name: m\nrows_per_step: 1\ntables: [{name: c, rows: 1, width: 4}, {name: c, rows: 2, width: 4}]\n")
    with pytest.raises(ConfigError, match="expected every table name once, got c more than once"):
        read_tables(str(path))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.05, 2.0])
def test_zipfs_law_is_the_integral_of_its_density(exponent: float) -> None:
    law = ZipfLaw(rows=20, exponent=exponent)
    place = np.linspace(1, 21, 200_001)
    density = place**-exponent
    expected = np.trapezoid(density[(place >= 4) & (place <= 8)], dx=1e-4) / np.trapezoid(density, dx=1e-4)
    assert law.share(3, 7) == pytest.approx(expected, rel=1e-4)
    assert law.share(0, 20) == pytest.approx(1.0)
