"""Plans compared round by round: right where a slow machine slows both, and where rounds say too little."""

import numpy as np
import pytest

from sidrec.bench.ranking import paired_slowdown


def test_by_hand() -> None:
    found = paired_slowdown([11.0, 24.0, 39.0], [10.0, 20.0, 30.0, 40.0])
    assert found is not None
    assert found.ratio == pytest.approx(1.2)  # of 1.1, 1.2 and 1.3
    assert (found.low, found.high) == pytest.approx((1.1, 1.3))
    assert (found.slower, found.rounds) == (3, 3)


def test_without_a_round_of_both() -> None:
    assert paired_slowdown([], [1.0]) is None


def test_rounds_in_which_all_is_slow_are_no_difference() -> None:
    """Half of the rounds take half as long again, for both plans; by medians alone the slower plan can seem faster."""
    rng = np.random.default_rng(0)
    machine_R = np.where(rng.random(40) < 0.5, 1.5, 1.0)
    other_R = 40 * machine_R * rng.lognormal(0, 0.02, 40)
    found = paired_slowdown((42 * machine_R * rng.lognormal(0, 0.02, 40)).tolist(), other_R.tolist())
    assert found is not None
    assert found.low < 1.05 < found.high
    assert found.low > 1.0
    assert found.high - found.low < 0.04


def test_the_interval_covers_the_truth_at_its_level() -> None:
    rng = np.random.default_rng(1)
    held = []
    for _ in range(200):
        found = paired_slowdown(rng.lognormal(0.05, 0.1, 20).tolist(), np.ones(20).tolist())
        assert found is not None
        held.append(found.low <= np.exp(0.05) <= found.high)
    assert 0.88 <= np.mean(held) <= 1.0
