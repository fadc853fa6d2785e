"""Which plans fit the memory, by hand."""

from sidrec.bench.candidate_plans import FreeMemory
from sidrec.plans.hardware import GB, Hardware

FOUR_RANKS_ON_TWO_MACHINES = FreeMemory(Hardware("test", "cpu", 4, 2, 0, 16 * GB, *[1e9] * 5), free=10 * GB)


def test_ranks_of_a_machine_share_its_memory() -> None:
    assert FOUR_RANKS_ON_TWO_MACHINES.lacks([4 * GB, 5 * GB, 5 * GB, 4 * GB]) is None
    assert FOUR_RANKS_ON_TWO_MACHINES.lacks([0, 0, 5 * GB, 6 * GB]) == (
        "expected tables and optimizer state of at most 9.0 GB on one machine (90% of what is free), got 11.0 GB"
    )


def test_models_are_kept_where_all_of_them_fit_half_the_memory() -> None:
    plan = [GB, GB, 2 * GB, 0]
    assert FOUR_RANKS_ON_TWO_MACHINES.keeps([plan, plan])
    assert not FOUR_RANKS_ON_TWO_MACHINES.keeps([plan, plan, plan])
