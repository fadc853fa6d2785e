"""SIDs joined to a KeyedJaggedTensor: by hand, and against a dictionary.

Shapes: B rows, U bags.
"""

from itertools import chain

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config.item import SidCoordItem
from sidrec.plug.sid_join import JoinedSids, SidJoin, catalog_rows
from sidrec.plug.statistics import ItemCounts, StatFeatures
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from tests.plug import hosts


def features(**rows: list[list[int]]) -> KeyedJaggedTensor:
    """Feature -> ids of every row."""
    lengths = [len(row) for ids in rows.values() for row in ids]
    values = [value for ids in rows.values() for row in ids for value in row]
    return KeyedJaggedTensor(keys=list(rows), values=torch.tensor(values), lengths=torch.tensor(lengths))


def bags(joined: JoinedSids) -> list[list[list[int]]]:
    """Per granularity and bag, the ids."""
    tensors = joined.granules.to_dict().values()
    return [[row.tolist() for row in jagged.to_dense()] for jagged in tensors]


def small_join(history: str | None, statistics: StatFeatures | ItemCounts | None = None) -> SidJoin:
    """Items 3, 5 and 6 of ids below 8 have SIDs (0, 1), (1, 1), (0, 1): rows of s1 are 1 and 2, of s12 too."""
    catalog = Catalog(np.array([3, 5, 6]), np.array([[0, 1], [1, 1], [0, 1]]), (2, 2))
    rows = catalog_rows(catalog, SidCoordItem(granularities=("s1", "s12")), items=8)
    return SidJoin(rows, "item", history, statistics)


def test_distinct_targets_are_bags() -> None:
    joined = small_join(None)(features(other=[[1]] * 5, item=[[5], [3], [], [7], [5]]), False)
    assert bags(joined) == [[[], [1], [2]], [[], [1], [2]]]
    assert joined.target_B.tolist() == [2, 1, 0, 0, 2]
    assert joined.history_BT.shape == (5, 0)


def test_distinct_items_with_a_sid_are_bags() -> None:
    batch = features(item=[[5], [3], [4]], history=[[6, 3, 6], [], [1, 5]])
    joined = small_join("history")(batch, False)
    # bags: none, then items 3, 5 and 6; items 1 and 4 have no SID, and are as good as padding
    assert bags(joined) == [[[], [1], [2], [1]], [[], [1], [2], [1]]]
    assert joined.target_B.tolist() == [2, 1, 0]
    assert joined.history_BT.tolist() == [[3, 1, 3], [0, 0, 0], [0, 2, 0]]


@pytest.mark.parametrize("history", [None, "history"])
def test_ids_outside_the_catalog_and_the_table_are_unknown(history: str | None) -> None:
    batch = features(item=[[8], [-1], [10**12], [0], [3]], history=[[99], [-5], [2], [0], [5]])
    joined = small_join(history, ItemCounts(torch.arange(8) * 10))(batch, False)
    sids = [bags(joined)[0][bag] for bag in joined.target_B.tolist()]
    assert sids == [[], [], [], [], [1]]
    assert joined.history_BT.tolist() == ([[0], [0], [0], [0], [2]] if history else [[]] * 5)
    assert joined.stats_BS.tolist() == [[0], [0], [0], [0], [30]]


def test_statistics_ride_in_the_batch() -> None:
    join = small_join(None, StatFeatures(("clicks", "likes")))
    batch = features(item=[[5], [3], [4]], likes=[[7], [], [0]], clicks=[[2**31], [1], [5]])
    assert join(batch, False).stats_BS.tolist() == [[2.0**31, 7], [1, 0], [5, 0]]


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_large_batches_equal_a_dictionary(kind: torch.dtype) -> None:
    catalog = hosts.catalog()
    rows = catalog_rows(catalog, SidCoordItem(), hosts.ITEMS)
    sparse = hosts.batch(rows=500).sparse_features
    sparse = KeyedJaggedTensor(keys=sparse.keys(), values=sparse.values().to(kind), lengths=sparse.lengths())
    joined = SidJoin(rows, "item_id", "history", None)(sparse, False)
    sid = {i: tuple(codes) for i, codes in zip(catalog.item_ids_N.tolist(), catalog.codes_NL.tolist(), strict=True)}
    granules = bags(joined)
    found = {bag: tuple(row[bag][0] if row[bag] else 0 for row in granules) for bag in range(len(granules[0]))}
    items = sparse["item_id"].values().tolist()
    history = [row.tolist() for row in sparse["history"].to_dense()]
    seen: dict[tuple[int, ...], tuple[int, ...]] = {}
    for item, target, ids, places in zip(items, joined.target_B.tolist(), history, joined.history_BT, strict=True):
        assert len(places) == hosts.T
        expected = [*ids, *[0] * (hosts.T - len(ids))]
        for identifier, bag in zip([item, *expected], [target, *places.tolist()], strict=True):
            assert (bag == 0) == (identifier not in sid)
            if bag:  # the same SID has the same rows, another SID has others
                assert seen.setdefault(sid[identifier], found[bag]) == found[bag]
    assert len(set(seen.values())) == len(seen)
    assert len(granules[0]) == 1 + len(set(sid) & {*items, *chain(*history)})


def test_token_weights_of_the_bags() -> None:
    codes_NL, weights_NL = np.array([[0, 1], [1, 1]]), np.array([[0.5, 2.0], [0.25, 4.0]])
    config = SidCoordItem(granularities=("s2", "s12"), token_weights="multiply")
    rows = catalog_rows(Catalog(np.array([1, 2]), codes_NL, (2, 2), weights_NL), config, items=4)
    joined = SidJoin(rows, "item", None, None)(features(item=[[2], [3], [1]]), False)
    assert joined.target_B.tolist() == [2, 0, 1]
    assert joined.token_weights_UW.tolist() == [[0, 0], [2, 1], [4, 1]]
    assert joined.rows_UG.tolist() == [[0, 0], [1, 1], [1, 2]]


def test_a_missing_feature_is_named() -> None:
    with pytest.raises(ContractError, match=r"expected the features .*'clicks'.*, got none called history"):
        small_join("history", StatFeatures(("clicks",)))(features(item=[[5]], clicks=[[1]]), False)


@pytest.mark.parametrize("name", ["item", "clicks"])
def test_two_values_in_a_row_are_refused(name: str) -> None:
    rows = {"item": [[5], [3], [4]], "clicks": [[1], [1], [1]]}
    rows[name] = [[5], [], [4, 4]]
    with pytest.raises(ContractError, match=f"batch, feature {name}, row 2: expected at most one value, got 2"):
        small_join(None, StatFeatures(("clicks",)))(features(**rows), False)


def test_strides_that_vary_are_refused() -> None:
    batch = KeyedJaggedTensor(
        keys=["item", "history"],
        values=torch.tensor([5, 3, 6]),
        lengths=torch.tensor([1, 1, 1]),
        stride_per_key_per_rank=[[1], [2]],
    )
    with pytest.raises(ContractError, match="expected as many rows in every feature, got strides that vary"):
        small_join("history")(batch, False)
