"""Verdicts and numbers of runs against cases worked out by hand."""

import numpy as np
import pytest

from sidrec.study.intervals import Interval
from sidrec.study.verdicts import MOST_RUNS, PILOT, Noise, Power, advice, more_runs, verdict

Z, Z80 = 1.959964, 0.841621


@pytest.mark.parametrize(
    ("metric", "ends", "expected"),
    [
        ("gauc", (0.0001, 0.03), "won"),
        ("gauc", (-0.03, -0.0001), "lost"),
        ("ne", (0.001, 0.03), "lost"),
        ("ne", (-0.03, -0.001), "won"),
        ("log_loss", (-0.03, -0.001), "won"),
        ("gauc", (-0.002, 0.002), "tied"),
        ("gauc", (-0.002, 0.0021), "cannot tell"),
        ("gauc", (-0.0021, 0.001), "cannot tell"),
        ("gauc", (0.0, 0.01), "cannot tell"),
        ("gauc", (0.0, 0.0), "tied"),
        ("gauc", (0.0001, 0.0002), "won"),
    ],
)
def test_verdicts(metric: str, ends: tuple[float, float], expected: str) -> None:
    assert verdict(metric, Interval(*ends), 0.002) == expected


def test_without_an_interval_there_is_no_verdict() -> None:
    assert verdict("auc", None, 0.002) == "cannot tell"


def test_noise_is_divided_into_runs_users_and_a_runs_own() -> None:
    # Two runs, three draws. Offsets: run 0 (1, 0, -1), run 1 (3, 0, -3); common part (2, 0, -2), variance 4.
    found, drawn = np.array([1.0, 3.0]), np.array([[2.0, 1.0, 0.0], [6.0, 3.0, 0.0]])
    noise = Noise.of(found, drawn)
    assert noise.runs_sd == pytest.approx(2**0.5)
    # By draw, the variance over the two runs: 2, 0, 2; mean 4/3.
    assert noise.own_sd**2 == pytest.approx(4 / 3)
    assert noise.users_sd**2 == pytest.approx(4 - (4 / 3) / 2)


def test_half_widths_are_those_of_the_t_interval_and_of_both_noises() -> None:
    alone = Noise(runs_sd=0.01, users_sd=0.0, own_sd=0.0).half_widths()
    assert alone[0] == pytest.approx(12.7062 * 0.01 / 2**0.5, rel=1e-5)  # t quantile of one degree of freedom
    assert alone[8] == pytest.approx(2.262157 * 0.01 / 10**0.5, rel=1e-5)
    both = Noise(runs_sd=0.01, users_sd=0.02, own_sd=0.003).half_widths()
    squared = (2.262157 * 0.01) ** 2 / 10 + Z**2 * (0.003**2 / 10 + 0.02**2)
    assert both[8] == pytest.approx(squared**0.5, rel=1e-5)
    assert (np.diff(alone) < 0).all()
    assert (np.diff(both) < 0).all()


def test_the_number_of_runs_makes_the_half_width_half_the_lead() -> None:
    # Mean .004, sd .005: wanted half-width .002. t(26) * .005 / sqrt(27) = .001978, t(25) * .005 / sqrt(26) = .002020.
    found = 0.004 + 0.005 * np.tile([-1.0, 1.0], 5) * (9 / 10) ** 0.5
    assert found.std(ddof=1) == pytest.approx(0.005)
    power = Power.of(found, None, half_width=0.0035, margin=0.002)
    assert (power.runs, power.planned_runs, power.users_factor) == (27, 27, None)
    assert power.tie_runs is None  # .004 is no tie
    assert more_runs(power, 10) == 17
    assert advice(power, 10) == "17 more runs would tell"
    assert power.detectable == pytest.approx(0.0035 * (1 + Z80 / Z), rel=1e-5)


def test_the_plan_rests_on_the_first_ten_runs_alone() -> None:
    found = 0.004 + 0.005 * np.tile([-1.0, 1.0], 5) * (9 / 10) ** 0.5
    longer = np.concatenate([found, np.full(20, 0.004)])
    assert Power.of(longer, None, 0.001, 0.002).planned_runs == 27
    assert Power.of(found[: PILOT - 1], None, 0.001, 0.002).planned_runs is None
    drawn = np.repeat(longer[:, None], 4, axis=1)
    drawn[PILOT:] += np.array([0.1, -0.1, 0.1, -0.1])  # draws of later runs do not change it either
    assert Power.of(longer, drawn, 0.001, 0.002).planned_runs == 27


def test_where_users_alone_are_too_noisy_more_users_are_asked_for() -> None:
    # Every run moves by the same +-.01 with the draw: sd sqrt(4/3) * .01. Lead .002, wanted half-width .001.
    found = np.array([0.0019, 0.0021, 0.002])
    drawn = found[:, None] + 0.01 * np.array([1.0, -1.0, 1.0, -1.0])
    power = Power.of(found, drawn, half_width=0.03, margin=0.002)
    assert power.runs is None
    assert power.users_factor == pytest.approx((Z * 0.01 * (4 / 3) ** 0.5 / 0.001) ** 2, rel=1e-5)
    assert more_runs(power, 3) is None
    assert advice(power, 3) == "more runs cannot tell; 512.2 times as many users could"


def test_a_small_difference_is_told_as_a_tie_sooner_than_as_a_lead() -> None:
    found = 0.0001 + 0.001 * np.tile([-1.0, 1.0], 5) * (9 / 10) ** 0.5
    power = Power.of(found, None, half_width=0.0008, margin=0.002)
    assert power.runs is None  # z * .001 / sqrt(n) <= .00005 takes about 1,540 runs
    assert (Z * 0.001 / 0.00005) ** 2 > MOST_RUNS
    # Wanted .0019: t(3) * .001 / 2 = .00159, t(2) * .001 / sqrt(3) = .00248.
    assert power.tie_runs == 4
    assert advice(power, 3) == "1 more run would tell"


def test_no_difference_needs_no_lead() -> None:
    power = Power.of(np.array([0.01, -0.01]), None, half_width=0.1, margin=0.0)
    assert (power.runs, power.tie_runs, power.users_factor) == (None, None, None)
    assert advice(power, 2) == f"{MOST_RUNS} runs would not tell"
    assert "noise" in advice(None, 1)
