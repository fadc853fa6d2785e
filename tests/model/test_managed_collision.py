"""Managed tables: who has a row of its own when, and who loses it."""

from typing import Any, TypeAlias

import pytest
import torch
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import MCHManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from sidrec.config.item_parts import ManagedCollisionIndex
from sidrec.data.item_tables import ItemTable
from sidrec.model.tables import POLICIES, ManagedCollisionRows, managed_table

Table: TypeAlias = ManagedCollisionEmbeddingBagCollection


def table_of(rows: int, **index: Any) -> Table:
    """A table in this process whose row r holds the number r."""
    managed = ManagedCollisionIndex(rows=rows, **index)
    table = managed_table("hid", ItemTable(rows, ("hid",), managed), 1, None, torch.device("cpu"))
    with torch.no_grad():
        table._embedding_module.embedding_bags["hid"].weight.copy_(torch.arange(rows)[:, None])
    return table


def read(table: Table, ids: list[int]) -> list[int]:
    """Rows that ids are looked up in. Another feature, which the table does not have, stands before them."""
    lengths = torch.ones(2 * len(ids), dtype=torch.int32)
    features = KeyedJaggedTensor(keys=["s1", "hid"], values=torch.tensor([0] * len(ids) + ids), lengths=lengths)
    looked_up, _ = table(features)
    return looked_up["hid"].squeeze(1).int().tolist()


def owners(table: Table, ids: range) -> set[int]:
    """Ids with a row of their own, as evaluation finds them."""
    table.eval()
    rows = dict(zip(ids, read(table, list(ids)), strict=True))
    table.train()
    unknown = table._embedding_module.embedding_bags["hid"].num_embeddings - 1
    found = {i: row for i, row in rows.items() if row != unknown}
    assert len(set(found.values())) == len(found), "no row has two owners"
    return set(found)


def test_ids_share_the_last_row_until_an_interval_ends() -> None:
    table = table_of(8, eviction_interval=2)
    assert read(table, [11, 12]) == [7, 7]
    assert owners(table, range(20)) == set()
    first, second = read(table, [12, 13])
    assert first != second
    assert owners(table, range(20)) == {11, 12, 13}
    assert read(table, [14, 12]) == [7, first], "met for the first time, and known"
    assert owners(table, range(20)) == {11, 12, 13}


def test_what_evaluation_meets_gets_no_row_and_moves_none() -> None:
    table = table_of(8, eviction_interval=1)
    read(table, [1, 2])
    before = {name: value.clone() for name, value in table.state_dict().items()}
    table.eval()
    for _ in range(3):
        assert read(table, [5, 1]) == [7, read(table, [1])[0]]
    assert all(torch.equal(value, before[name]) for name, value in table.state_dict().items())


LAST_MET = [[1]] * 5 + [[2], [3], [4]]
"""Met at the eighth step: 1 five times, last three steps ago; 2 and 3 once, two steps ago and in the last; 4 is new."""


@pytest.mark.parametrize(
    ("eviction", "kept"),
    [
        ("lru", {2, 3, 4}),  # 1 is met longest ago
        ("lfu", {1, 2, 3}),  # 4 is met no more often than any
        ("distance_lfu", {1, 3, 4}),  # meetings by steps: 1 has 5 / 4, 2 has 1 / 3, 3 has 1 / 2, 4 has 1 / 1
    ],
)
def test_who_loses_its_row(eviction: str, kept: set[int]) -> None:
    table = table_of(4, eviction=eviction, eviction_interval=1)
    for ids in LAST_MET:
        read(table, ids)
    assert owners(table, range(9)) == kept


def test_a_frequent_newcomer_takes_the_rarest_row() -> None:
    table = table_of(4, eviction="lfu", eviction_interval=2)
    for ids in ([1, 2, 3], [1, 2], [4], [4]):
        read(table, ids)
    assert owners(table, range(9)) == {1, 2, 4}


def test_a_row_goes_from_one_id_to_the_next() -> None:
    table = table_of(3, eviction="lru", eviction_interval=1)
    read(table, [1])
    (row,) = read(table, [2])
    read(table, [1])
    assert read(table, [3]) == [row]
    assert owners(table, range(9)) == {1, 3}


def test_an_interval_may_grow_after_its_first_step() -> None:
    table = table_of(20, eviction_interval=3)
    for ids in ([1], [2, 3, 4, 5, 6, 7], [8, 9, 10]):
        read(table, ids)
    assert owners(table, range(20)) == set(range(1, 11)), "TorchRec's own memory would end after three ids"


def slots_of(kind: type[MCHManagedCollisionModule], eviction: str) -> MCHManagedCollisionModule:
    return kind(zch_size=12, device=torch.device("cpu"), eviction_policy=POLICIES[eviction](), eviction_interval=3)


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 30, (10,), generator=generator) for _ in range(count)]


def rows_of(slots: MCHManagedCollisionModule, ids: torch.Tensor) -> list[int]:
    return slots({"hid": JaggedTensor(values=ids, lengths=torch.ones_like(ids))})["hid"].values().tolist()


@pytest.mark.parametrize("eviction", POLICIES)
def test_slots_are_torchrec_s_where_no_id_is_dropped(eviction: str) -> None:
    ours, theirs = slots_of(ManagedCollisionRows, eviction), slots_of(MCHManagedCollisionModule, eviction)
    for ids in batches(20):
        assert rows_of(ours, ids) == rows_of(theirs, ids)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("eviction", POLICIES)
@pytest.mark.parametrize("stop", [6, 7, 8])
def test_resumed_within_an_interval_equals_uninterrupted(eviction: str, stop: int) -> None:
    whole, resumed = slots_of(ManagedCollisionRows, eviction), slots_of(ManagedCollisionRows, eviction)
    for ids in batches(20)[:stop]:
        rows_of(whole, ids)
    assert isinstance(whole, ManagedCollisionRows)
    assert isinstance(resumed, ManagedCollisionRows)
    interval = whole.interval()
    assert len(interval["ids"]) == 10 * (stop % 3)
    resumed.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    resumed.resume(interval)
    for ids in batches(20)[stop:]:
        assert rows_of(resumed, ids) == rows_of(whole, ids)


def test_nothing_is_remembered_before_the_first_step() -> None:
    slots = slots_of(ManagedCollisionRows, "lru")
    assert isinstance(slots, ManagedCollisionRows)
    assert {name: len(values) for name, values in slots.interval().items()} == {"ids": 0, "last_access_iter": 0}
    assert rows_of(slots, torch.tensor([5])) == [11]
