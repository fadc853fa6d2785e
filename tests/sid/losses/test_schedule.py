"""Progress-adaptive rebalancing (AdaSID): how weights change in training."""

import pytest

from sidrec.config.learners import AdaSidConfig
from sidrec.config.sid_losses import Contrast, OverlapRepulsion, Schedule
from sidrec.sid.losses.loss import schedule_factor


def adasid_factors(progress: float) -> tuple[float, float]:
    """(lambda_col, lambda_cf) as a share of its maximum."""
    repulsion, contrast = AdaSidConfig().losses
    assert isinstance(repulsion, OverlapRepulsion)
    assert isinstance(contrast, Contrast)
    return schedule_factor(repulsion.schedule, progress), schedule_factor(contrast.schedule, progress)


def test_repulsion_goes_and_contrast_comes() -> None:
    """Oracle: lambda_col = 1, lambda_cf = 0 at tau_p = 0; at 1, from .6 of the training on, floor and maximum."""
    assert adasid_factors(0) == (1, 0)
    assert adasid_factors(0.3) == pytest.approx((1 - 0.9 * 0.5, 0.5))
    assert adasid_factors(0.6) == pytest.approx((0.1, 1))
    assert adasid_factors(1) == pytest.approx((0.1, 1))


def test_a_later_beginning() -> None:
    schedule = Schedule(first=2, last=4, begin=0.25, end=0.75)
    assert [schedule_factor(schedule, progress) for progress in (0, 0.25, 0.375, 0.5, 0.75, 1)] == [2, 2, 2.5, 3, 4, 4]


def test_a_step() -> None:
    schedule = Schedule(first=0, last=1, begin=0.5, end=0.5)
    assert [schedule_factor(schedule, progress) for progress in (0, 0.49, 0.5, 1)] == [0, 0, 1, 1]


def test_none_is_constant() -> None:
    assert schedule_factor(None, 0.3) == 1


def test_an_end_before_the_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"end of at least begin 0\.8, got 0\.6"):
        Schedule(first=0, last=1, begin=0.8)
