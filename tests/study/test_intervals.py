"""Intervals against cases with a known answer, brute force, and coverage in simulated studies."""

from dataclasses import replace

import numpy as np
import pytest

from sidrec.metrics.predictions import Predictions
from sidrec.metrics.resampling import resample
from sidrec.schema import ContractError
from sidrec.study.intervals import (
    Difference,
    check_same_rows,
    hierarchical_interval,
    hierarchical_means,
    interval,
    paired_interval,
    percentile_interval,
    resampled_differences,
    t_interval,
)
from tests.metrics.test_resampling import predictions


def _better(skill: float) -> Predictions:
    rows = predictions()
    return replace(rows, score_N=rows.score_N + np.float32(skill) * rows.label_N)


def _difference(ours: Predictions, theirs: Predictions) -> Difference:
    masks = {"all": np.ones(len(ours), dtype=bool)}
    found = resampled_differences(*(resample(of, masks, 100) for of in (ours, theirs)))["all"]["gauc"]
    assert found is not None
    return found


def test_equal_models_differ_by_exactly_nothing_because_the_draws_are_paired() -> None:
    found = _difference(predictions(), predictions())
    assert (found["difference"], found["low"], found["high"], found["resamples"]) == (0.0, 0.0, 0.0, 100)
    better = _difference(_better(0.3), predictions())
    assert 0 < better["low"] < better["difference"] < better["high"]


def test_a_difference_that_no_resample_defines_has_no_interval() -> None:
    found = replace(predictions(), user_N=np.arange(len(predictions())))  # a row per user: no user has both classes
    measured = resample(found, {"all": np.ones(len(found), dtype=bool)}, 5)
    assert resampled_differences(measured, measured)["all"]["gauc"] is None
    assert resampled_differences(measured, measured)["all"]["auc"] is not None


def test_runs_of_other_rows_are_refused() -> None:
    base = predictions()
    with pytest.raises(ContractError, match="predictions of other: expected the rows of every other run of split test"):
        check_same_rows({"base": base, "other": replace(base, label_N=1 - base.label_N)})


def test_the_percentile_interval_spans_the_middle_of_the_replicates() -> None:
    ends = percentile_interval(np.arange(1001.0))  # quantiles .025 and .975 of 0 to 1000
    assert [ends.low, ends.high, ends.half_width] == pytest.approx([25, 975, 475])
    found = Difference(difference=0.5, low=ends.low, high=ends.high, resamples=1001)
    assert interval(0.5, np.arange(1001.0)) == found


def test_paired_interval_is_the_t_interval_of_the_pairs() -> None:
    found = paired_interval([0.3, 0.5, 0.4], [0.2, 0.2, 0.2])
    # differences .1 .3 .2: mean .2, sd .1, standard error .1 / sqrt(3); t quantile of two degrees of freedom 4.302653
    assert found["difference"] == pytest.approx(0.2)
    assert found["high"] == pytest.approx(0.2 + 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert found["low"] == pytest.approx(0.2 - 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert found["p"] == pytest.approx(0.0742, abs=1e-4)
    assert (found["pairs"], found["positive"]) == (3, 3)
    assert paired_interval([0.3], [0.2])["low"] is None
    ends = t_interval(np.array([0.1, 0.3, 0.2]))
    assert ends is not None
    assert [ends.low, ends.high] == pytest.approx([found["low"], found["high"]])
    assert t_interval(np.array([0.1])) is None


def test_equal_pairs_have_an_interval_without_width_and_no_p() -> None:
    found = paired_interval([0.5, 0.75], [0.25, 0.5])
    assert (found["difference"], found["low"], found["high"], found["p"]) == (0.25, 0.25, 0.25, None)


def test_hierarchical_means_are_those_written_out() -> None:
    random = np.random.default_rng(0)
    found_n, drawn_nR = random.normal(size=3), random.normal(size=(3, 8))
    means_B = hierarchical_means(found_n, drawn_nR, 24, seed=5)
    times_Bn = np.random.default_rng(5).multinomial(3, [1 / 3] * 3, size=24)
    factor = 4.302653 / 1.959964 * 1.5**0.5  # t quantile of two degrees of freedom, normal quantile, n / (n - 1)
    expected = []
    for replicate in range(24):
        drawn = np.repeat(np.arange(3), times_Bn[replicate])
        values = [drawn_nR[run, replicate % 8] + (factor - 1) * (found_n[run] - found_n.mean()) for run in drawn]
        expected.append(sum(values) / 3)
    assert means_B.tolist() == pytest.approx(expected, rel=1e-6)


def test_hierarchical_means_have_the_distribution_of_all_cases() -> None:
    # Two runs and two draws: the runs drawn are aa, ab, ba or bb, with either draw of users: eight equal cases.
    drawn_nR = np.array([[1.0, 2.0], [5.0, 10.0]])
    # On the actual users both are equal, so that nothing is expanded.
    cases = [drawn_nR[list(runs), draw].mean() for runs in ((0, 0), (0, 1), (1, 0), (1, 1)) for draw in (0, 1)]
    means_B = hierarchical_means(np.ones(2), drawn_nR, 40_000, seed=0)
    for value in cases:
        share = np.mean(np.isclose(means_B, value))
        assert share == pytest.approx(np.isclose(cases, value).sum() / 8, abs=0.01)


def test_without_noise_of_users_the_width_is_that_of_the_t_interval() -> None:
    value_n = np.random.default_rng(0).normal(size=30)
    drawn_nR = np.repeat(value_n[:, None], 256, axis=1)
    over_runs = t_interval(value_n)
    assert over_runs is not None
    assert hierarchical_interval(value_n, drawn_nR).half_width == pytest.approx(over_runs.half_width, rel=0.03)


def test_of_a_single_run_the_interval_is_over_users_alone() -> None:
    drawn_1R = np.random.default_rng(0).normal(size=(1, 256))
    assert hierarchical_interval(np.ones(1), drawn_1R) == percentile_interval(np.tile(drawn_1R[0], 16))


def test_runs_that_agree_on_every_draw_add_no_width() -> None:
    drawn_R = np.random.default_rng(0).normal(size=256)
    alone = hierarchical_interval(np.zeros(1), drawn_R[None])
    ten = hierarchical_interval(np.zeros(10), np.tile(drawn_R, (10, 1)))
    assert [ten.low, ten.high] == pytest.approx([alone.low, alone.high])
    constant = hierarchical_interval(np.full(3, 0.25), np.full((3, 256), 0.25))
    assert (constant.low, constant.high) == (0.25, 0.25)


@pytest.mark.parametrize(("runs_sd", "users_sd"), [(1.0, 0.1), (1.0, 1.0), (0.1, 1.0)])
def test_the_hierarchical_interval_covers_the_truth_of_simulated_studies(runs_sd: float, users_sd: float) -> None:
    """A difference is the mean over users of a user's effect, a run's and a user's own of a run. The truth is 0.

    The standard deviations are those of the mean. Nominal: 95% of studies. Over users alone: where runs matter, less.
    """
    random, runs, users, studies = np.random.default_rng(3), 10, 80, 300
    covered = {"both": 0, "over users": 0}
    for _ in range(studies):
        times_RV = random.multinomial(users, np.full(users, 1 / users), size=64)
        effect_V = random.normal(size=users) * users_sd * users**0.5
        effect_n = random.normal(size=runs) * runs_sd * runs**0.5
        value_nV = effect_V + effect_n[:, None] + random.normal(size=(runs, users)) * 0.1 * users**0.5
        drawn_nR = value_nV @ times_RV.T / users
        both = hierarchical_interval(value_nV.mean(axis=1), drawn_nR, 512)
        for name, ends in (("both", both), ("over users", percentile_interval(drawn_nR.mean(axis=0)))):
            covered[name] += ends.low <= 0 <= ends.high
    assert 0.92 <= covered["both"] / studies <= 0.98
    if runs_sd == 1.0:
        assert covered["over users"] / studies < 0.85
