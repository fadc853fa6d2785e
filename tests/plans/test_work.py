"""Work counted by hand: one table of 8 rows and width 4, two features of 3 and 1 ids per bag, 10 bags, 2 ranks."""

import math

import numpy as np
import pytest

from sidrec.plans.cost import KINDS, PlacedShard, PlacedTable, joint_work, table_work, work_by_kind
from sidrec.plans.workload import RowFrequencies, TableLoad

LOAD = TableLoad(bags=10, ids_per_bag=(3.0, 1.0))


def _placed(sharding_type: str, *shards: PlacedShard) -> PlacedTable:
    return PlacedTable("items", "hid", 8, sharding_type, shards)


def _work(table: PlacedTable, load: TableLoad = LOAD) -> list[dict[str, float]]:
    return [
        {kind: amount for kind, amount in work_by_kind(row).items() if amount} for row in table_work(table, load, 2)
    ]


def test_table_wise_gives_all_work_to_the_owner_and_both_ranks_send_their_ids() -> None:
    idle, owner = _work(_placed("table_wise", PlacedShard(1, 0, 8, 4)))
    assert idle == {"sent_ids": 20.0}  # half of a rank's 40 ids go to the other rank
    assert owner == {
        "sent_ids": 20.0,
        "looked_up_ids": 80.0,  # 2 ranks x 10 bags x 4 ids
        "looked_up_bytes": 80.0 * 16,
        "updated_bytes": pytest.approx(8 * -math.expm1(-10) * 16),  # 80 ids, 10 per row: nearly every row
        "pooled_bags": 40.0,  # 2 ranks x 10 bags x 2 features
        "exchanged_bytes": 40.0 * 16 / 2,
    }


def test_column_wise_sends_every_id_to_every_rank_with_columns() -> None:
    for rank in _work(_placed("column_wise", PlacedShard(0, 0, 8, 2), PlacedShard(1, 0, 8, 2))):
        assert rank["sent_ids"] == 40.0
        assert rank["looked_up_ids"] == 80.0
        assert rank["looked_up_bytes"] == 80.0 * 8
        assert rank["updated_bytes"] == pytest.approx(8 * -math.expm1(-10) * 8)


def test_row_wise_shares_ids_by_the_frequency_of_their_rows() -> None:
    table = _placed("row_wise", PlacedShard(0, 0, 4, 4), PlacedShard(1, 4, 4, 4))
    even = _work(table)
    assert even[0] == even[1]
    assert even[0]["looked_up_ids"] == 40.0
    assert even[0]["sorted_ids"] == 40.0
    assert even[0]["reduced_bytes"] == 40.0 * 16 / 2
    frequency = np.array([0.7, 0.1, 0.0, 0.0, 0.1, 0.1, 0.0, 0.0])
    skewed = _work(table, TableLoad(10, (3.0, 1.0), RowFrequencies(frequency)))
    assert [rank["looked_up_ids"] for rank in skewed] == pytest.approx([64.0, 16.0])
    # However many of the 80 ids fall on the first row, it is updated once.
    met = -np.expm1(-80 * frequency) * 16
    assert [rank["updated_bytes"] for rank in skewed] == pytest.approx([met[:4].sum(), met[4:].sum()])


def test_a_replicated_table_costs_every_rank_what_all_its_rows_take() -> None:
    table = _placed("data_parallel", PlacedShard(0, 0, 8, 4), PlacedShard(1, 0, 8, 4))
    assert _work(table) == [{"replicated_bytes": 8.0 * 16}] * 2


def test_nothing_is_sent_in_a_world_of_one() -> None:
    alone = table_work(_placed("table_wise", PlacedShard(0, 0, 8, 4)), LOAD, 1)
    assert work_by_kind(alone[0])["sent_ids"] == work_by_kind(alone[0])["exchanged_bytes"] == 0.0


def test_collectives_are_counted_once_per_collection_and_type() -> None:
    shard = PlacedShard(0, 0, 8, 4)
    tables = [
        PlacedTable("items", "a", 8, "table_wise", (shard,)),
        PlacedTable("items", "b", 8, "table_wise", (shard,)),
        PlacedTable("context", "c", 8, "table_wise", (shard,)),
        PlacedTable("items", "d", 8, "table_row_wise", (shard,)),
        PlacedTable("items", "e", 8, "data_parallel", (shard,)),
        PlacedTable("places", "f", 8, "data_parallel", (shard,)),
    ]
    counted = work_by_kind(joint_work(tables, 2)[1])
    assert {kind: amount for kind, amount in counted.items() if amount} == {
        "divided_collections": 2.0,  # all tables of "places" are replicated
        "exchanges": 2.0,
        "reductions": 1.0,
        "host_exchanges": 1.0,
        "replications": 2.0,
    }
    assert joint_work(tables, 2).shape == (2, len(KINDS))
