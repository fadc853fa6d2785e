"""Rows of hashed tables, of subwords, and granules to match: what the rivals of SID-Coord look up."""

import numpy as np
import pytest

from sidrec.config.item import (
    ContentItem,
    HidAndSidItem,
    HidItem,
    ManagedCollisionIndex,
    MatchStatsAlignment,
    ModuloIndex,
    SidItem,
    SpmTokens,
)
from sidrec.data.item_tables import ItemTable, hashed_rows, item_tables
from sidrec.schema import ContractError
from sidrec.sid.granularity import Subwords, fit_subwords
from tests.data.log_files import manifest_of
from tests.data.test_item_tables import CATALOG


def test_hashed_granularities_share_a_table_and_collide() -> None:
    item = HidAndSidItem(granularities=("s1", "s12"), index=ModuloIndex(rows=4))
    tables = item_tables(item, manifest_of(), CATALOG)
    assert tables.tables == {"hid": ItemTable(30, ("hid",)), "sid": ItemTable(4, ("s1", "s12"))}
    assert tables.features == ("hid", "s1", "s12")
    composed = {"s1": [7, 5, 5], "s12": [70_000, 50_001, 50_000]}  # of items 1, 2, 4, with radix 10,000
    for name, ids in composed.items():
        expected = np.zeros(30, np.int64)
        expected[[1, 2, 4]] = hashed_rows(np.array(ids), name, 4)
        assert tables.rows_of(name).tolist() == expected.tolist()
    assert len(np.unique(tables.rows_IF[:, 1:])) <= 4


def test_hids_can_be_hashed_too() -> None:
    tables = item_tables(HidItem(hid_index=ModuloIndex(rows=7)), manifest_of(), None)
    assert tables.tables == {"hid": ItemTable(7, ("hid",))}
    rows_I = tables.rows_of("hid")
    assert rows_I[0] == 0
    assert (rows_I[1:] > 0).all()
    assert rows_I.max() < 7
    assert 4 < len(np.unique(rows_I)) <= 7


def test_managed_tables_are_looked_up_by_the_id_itself() -> None:
    index = ManagedCollisionIndex(rows=7)
    tables = item_tables(HidAndSidItem(granularities=("s1",), hid_index=index), manifest_of(), CATALOG)
    exact = item_tables(HidAndSidItem(granularities=("s1",)), manifest_of(), CATALOG)
    assert tables.tables == {**exact.tables, "hid": ItemTable(7, ("hid",), managed=index)}
    np.testing.assert_array_equal(tables.rows_IF, exact.rows_IF)


def test_match_statistics_compare_exact_granules_whatever_the_index() -> None:
    item = SidItem(granularities=("s1", "s12"), index=ModuloIndex(rows=2), alignment=MatchStatsAlignment())
    granules = item_tables(item, manifest_of(), CATALOG).per_item["granules_UG"]
    assert granules[np.array([0, 1, 2, 3, 4])].tolist() == [[0, 0], [2, 3], [1, 2], [0, 0], [1, 1]]


def test_subwords_share_a_table() -> None:
    codes_IL = CATALOG.codes_by_id(30)
    impressions_I = np.zeros(30, np.int64)
    impressions_I[[2, 4]] = 100, 1
    subwords = Subwords(fit_subwords(codes_IL, impressions_I, (8, 2), 6), (8, 2))
    item = SidItem(tokens=SpmTokens(vocabulary=6))
    tables = item_tables(item, manifest_of(), CATALOG, subwords)
    assert tables.tables == {"sid": ItemTable(6, ("spm_1", "spm_2"))}
    used = (tables.rows_IF > 0).sum(axis=1)
    assert used[[1, 2, 4]].tolist() == [2, 1, 2], "the popular item has a row of its own"
    assert not used[[0, 3, *range(5, 30)]].any()


def test_content_travels_with_the_tables() -> None:
    content = np.ones((30, 5), np.float32)
    tables = item_tables(ContentItem(), manifest_of(), None, content=content)
    assert tables.features == ("hid",)
    assert tables.per_item["content_UV"] is content


@pytest.mark.parametrize("tokens", [None, SpmTokens(vocabulary=9)])
def test_every_kind_with_sids_wants_a_catalog(tokens: SpmTokens | None) -> None:
    item = HidAndSidItem(tokens=tokens) if tokens else HidAndSidItem()
    with pytest.raises(ContractError, match=r"^model\.item: expected a catalog, .* hid_and_sid need, got none$"):
        item_tables(item, manifest_of(), None)


@pytest.mark.parametrize("item", [HidAndSidItem(), HidAndSidItem(index=ModuloIndex(rows=9))])
def test_granularities_deeper_than_the_catalog_are_refused(item: HidAndSidItem) -> None:
    with pytest.raises(ContractError, match=r"^granularity s3: expected levels among the 2 of the catalog, got 3$"):
        item_tables(item, manifest_of(), CATALOG)
