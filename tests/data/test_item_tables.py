import numpy as np
import pytest

from sidrec.config.item import HidItem, Item, SidCoordItem, SidItem
from sidrec.data.item_tables import ItemTables, item_tables
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from tests.data.log_files import manifest_of

# Items 1, 2 and 4 of a log that knows ids 0 to 29; s1 takes the codes 5 and 7, s12 takes 5.0, 5.1 and 7.0.
CATALOG = Catalog(np.array([1, 2, 4]), np.array([[7, 0], [5, 1], [5, 0]]), (8, 2))
CATALOG_3 = Catalog(np.array([1]), np.array([[7, 0, 1]]), (8, 2, 2))


def tables_of(item: Item) -> ItemTables:
    return item_tables(item, manifest_of(), CATALOG)


def rows_by_table(tables: ItemTables) -> dict[str, int]:
    return {name: table.rows for name, table in tables.tables.items()}


def test_hid_rows_are_the_item_ids() -> None:
    tables = item_tables(HidItem(), manifest_of(), None)
    assert rows_by_table(tables) == {"hid": 30}
    assert tables.rows_of("hid").tolist() == list(range(30))


def test_sid_rows_number_the_codes_that_occur() -> None:
    tables = tables_of(SidItem(granularities=("s1", "s12")))
    assert rows_by_table(tables) == {"s1": 3, "s12": 4}
    assert tables.rows_of("s1").tolist() == [0, 2, 1, 0, 1] + [0] * 25
    assert tables.rows_of("s12").tolist() == [0, 3, 2, 0, 1] + [0] * 25


def test_sid_coord_has_both() -> None:
    tables = tables_of(SidCoordItem(granularities=("s2",)))
    assert tables.features == ("hid", "s2")
    assert tables.rows_of("s2").tolist() == [0, 1, 2, 0, 1] + [0] * 25


def test_a_granularity_weighs_the_product_of_its_tokens() -> None:
    weighted = Catalog(np.array([1, 4]), np.array([[7, 0], [5, 0]]), (8, 2), np.array([[1.0, 0.5], [3.0, 0.25]]))
    item = SidItem(granularities=("s1", "s2", "s12"), token_weights="multiply")
    tables = item_tables(item, manifest_of(), weighted)
    weights = tables.per_item["token_weights_UW"]
    assert weights[np.array([1, 4])].tolist() == [[1, 0.5, 0.5], [3, 0.25, 0.75]]
    assert not weights[np.array([0, 2, 29])].any()
    unused = item_tables(SidItem(), manifest_of(), CATALOG_3).per_item
    assert unused["token_weights_UW"][np.arange(30)].shape == (30, 0)


def test_token_weights_that_the_catalog_lacks_are_refused() -> None:
    with pytest.raises(ContractError, match=r"^catalog: expected token weights, .*, got codes alone$"):
        tables_of(SidItem(granularities=("s1",), token_weights="append"))


def test_sids_without_a_catalog_are_refused() -> None:
    with pytest.raises(ContractError, match=r"^model\.item: expected a catalog, .* sid_coord need, got none$"):
        item_tables(SidCoordItem(), manifest_of(), None)
