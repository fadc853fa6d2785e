"""Which plans fit the memory, by hand."""

import pytest

from sidrec.bench import candidate_plans
from sidrec.bench.candidate_plans import FreeMemory
from sidrec.plans.hardware import GB, Hardware


@pytest.fixture
def four_ranks_on_two_machines(monkeypatch: pytest.MonkeyPatch) -> FreeMemory:
    monkeypatch.setattr(candidate_plans, "memory", lambda: (10 * GB, 16 * GB))
    hardware = Hardware("test", "cpu", 4, 2, 0, 16 * GB, *[1e9] * 5)
    return FreeMemory(hardware)


def test_ranks_of_a_machine_share_its_memory(four_ranks_on_two_machines: FreeMemory) -> None:
    assert four_ranks_on_two_machines.lacks([4 * GB, 5 * GB, 5 * GB, 4 * GB]) is None
    assert four_ranks_on_two_machines.lacks([0, 0, 5 * GB, 6 * GB]) == (
        "expected tables and optimizer state of at most 9.0 GB on one machine (90% of what is free), got 11.0 GB"
    )


def test_models_are_kept_where_all_of_them_fit_half_the_memory(four_ranks_on_two_machines: FreeMemory) -> None:
    plan = [GB, GB, 2 * GB, 0]
    assert four_ranks_on_two_machines.keeps([plan, plan])
    assert not four_ranks_on_two_machines.keeps([plan, plan, plan])
