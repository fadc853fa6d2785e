"""Calibrated costs: a plan costs what its work does, and the search takes what they call faster."""

import numpy as np
import pytest

from sidrec.plans.cost import (
    KINDS,
    VERSION,
    CalibratedCost,
    Calibration,
    TorchRecCost,
    UnitCosts,
    placed_tables,
    plan_work,
)
from sidrec.plans.search import search
from tests.plans.tables_workload import hardware, sharders, workload

TABLES = {"long": (5000, 16), "short": (40, 16), "wide": (300, 32)}


def _calibrated(spread: float = 0.0, **milliseconds: float) -> CalibratedCost:
    return CalibratedCost(Calibration(VERSION, "cpu", {2: UnitCosts(milliseconds, 1, ["m"], 0.0, spread)}))


def test_a_plan_costs_what_its_work_does() -> None:
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


def test_of_plans_that_cannot_be_told_apart_one_that_sends_no_ids_is_taken() -> None:
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


def test_the_search_is_never_behind_torchrecs_plan() -> None:
    rng = np.random.default_rng(1)
    for _ in range(3):
        cost = _calibrated(**dict(zip(KINDS, rng.random(len(KINDS)).tolist(), strict=True)))
        found = search(workload(TABLES), hardware(), sharders(), cost)
        default = next(candidate for candidate in found if candidate.name == "default")
        assert found[0].cost.step <= default.cost.step
