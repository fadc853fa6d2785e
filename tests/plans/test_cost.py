"""Work counted by hand, and calibrated costs: a plan costs what its work does."""

import math

import numpy as np
import pytest

from sidrec.plans.calibration import VERSION, CalibratedCost, Calibration, UnitCosts
from sidrec.plans.cost import (
    KINDS,
    PlacedShard,
    PlacedTable,
    TorchRecCost,
    joint_work,
    placed_tables,
    plan_work,
    table_work,
    work_by_kind,
)
from sidrec.plans.search import search
from sidrec.plans.workload import RowFrequencies, TableLoad
from tests.plans.tables_workload import hardware, sharders, workload

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


TABLES = {"long": (5000, 16), "short": (40, 16), "wide": (300, 32)}


def _calibrated(spread: float = 0.0, **milliseconds: float) -> CalibratedCost:
    return CalibratedCost(Calibration(VERSION, "cpu", {2: UnitCosts(milliseconds, 1, ["m"], 0.0, spread)}))


def test_the_cost_of_a_plan_is_that_of_its_work() -> None:
    load, there, rng = workload(TABLES), hardware(), np.random.default_rng(0)
    milliseconds = dict(zip(KINDS, rng.random(len(KINDS)).tolist(), strict=True))
    cost = _calibrated(**milliseconds)
    for candidate in search(load, there, sharders(), TorchRecCost()):
        work_WK = plan_work(placed_tables(candidate.options), load, there.world)
        found = cost.rate(candidate.options, load, there)
        expected_W = work_WK @ np.array(list(milliseconds.values()))
        assert found.ranks == pytest.approx(expected_W.tolist())
        assert found.step == max(found.ranks)
        for name, parts in found.parts.items():
            assert sum(parts.values()) == pytest.approx(max(found.tables[name]))


def test_where_nothing_but_rounds_of_collectives_cost_a_plan_of_one_type_is_taken() -> None:
    load, there = workload(TABLES), hardware()
    best = search(load, there, sharders(), _calibrated(exchanges=5.0, reductions=1.0, host_exchanges=1.0))[0]
    assert {option.sharding_type for option in best.options} == {"row_wise"}
    assert best.cost.step == 1.0


def test_where_lookups_cost_they_are_shared_by_the_ranks() -> None:
    load, there = workload({name: (1000, 16) for name in "abcd"}), hardware()
    best = search(load, there, sharders(), _calibrated(looked_up_ids=1.0, exchanges=1e-6, reductions=1e6))[0]
    assert best.cost.ranks[0] == pytest.approx(best.cost.ranks[1])


def test_types_are_mixed_only_where_that_is_faster_by_more_than_the_fit_is_off() -> None:
    load, there = workload({**{f"tiny_{n}": (8, 16) for n in range(8)}, "long": (1_000_000, 16)}), hardware()
    costs = {"pooled_bags": 1e-3, "exchanges": 1.0, "reductions": 1.0, "replicated_bytes": 1e-4, "steps": 100.0}
    types = []
    for spread in (0.0, 0.5):
        best = search(load, there, sharders(), _calibrated(spread, **costs))[0]
        types.append({option.sharding_type for option in best.options})
    assert "data_parallel" in types[0]
    assert len(types[1]) == 1


def test_of_tied_plans_one_that_sends_no_ids_is_taken() -> None:
    load, there = workload({f"tiny_{n}": (8, 16) for n in range(4)}), hardware()
    bytes_in_all = 4 * 8 * 16 * 4
    costs = {"steps": 100.0, "replicated_bytes": 1.0 / bytes_in_all, "exchanges": 0.5}  # replicas take 0.5 ms longer
    types = []
    for spread in (0.001, 0.05):
        best = search(load, there, sharders(), _calibrated(spread, **costs))[0]
        types.append({option.sharding_type for option in best.options})
    assert "data_parallel" not in types[0]
    assert types[1] == {"data_parallel"}


def test_small_tables_are_replicated_on_cpu_where_that_was_measured_to_be_cheap() -> None:
    load, there = workload({**{f"tiny_{n}": (8, 16) for n in range(8)}, "long": (1_000_000, 16)}), hardware()
    costs = {"pooled_bags": 1e-3, "exchanges": 1.0, "reductions": 1.0}
    unknown = search(load, there, sharders(), _calibrated(**costs))[0]
    assert "data_parallel" not in {option.sharding_type for option in unknown.options}
    known = search(load, there, sharders(), _calibrated(**costs, replicated_bytes=1e-4))[0]
    replicated = {option.name for option in known.options if option.sharding_type == "data_parallel"}
    assert "long" not in replicated
    assert len(replicated) >= 5  # three ranks have nothing else to do than to hold one each


def test_the_search_is_never_slower_than_torchrecs_plan() -> None:
    rng = np.random.default_rng(1)
    for _ in range(3):
        cost = _calibrated(**dict(zip(KINDS, rng.random(len(KINDS)).tolist(), strict=True)))
        found = search(workload(TABLES), hardware(), sharders(), cost)
        default = next(candidate for candidate in found if candidate.name == "default")
        assert found[0].cost.step <= default.cost.step
