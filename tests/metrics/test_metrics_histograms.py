"""Metrics from histograms: equal to exact ones of binned scores, within the stated errors of exact ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from sidrec.metrics import Estimate, Gauc, Histograms, SlicedAuc, Uauc
from sidrec.metrics.exact import measure
from sidrec.metrics.slices import slice_items
from sidrec.metrics.streaming import FREE, sampled_share, user_keys
from tests.metrics.made_up_log import Log, defined


def test_rows_of_one_bin_tie_and_the_bound_is_half_their_share() -> None:
    gauc = Gauc(Histograms(users=4, bins=4, pooled_bins=2, low=0.0, high=4.0))
    # user 1, bins 0 to 3: negatives 0.5, 1.5; positives 1.2, 3.5 -> pairs: 1.2 won, 1.2 tied with 1.5, 3.5 won twice
    # user 2: scores beyond the range fall into the outermost bins: -9 loses against 9
    scores = torch.tensor([0.5, 1.5, 1.2, 3.5, -9.0, 9.0])
    gauc.update(scores, torch.tensor([0, 0, 1, 1, 0, 1]), torch.tensor([1, 1, 1, 1, 2, 2]))
    estimates = gauc.estimates()
    assert estimates["all/gauc"] == ((4 * 3.5 / 4 + 2 * 1.0) / 6, (4 * 0.5 / 4 + 2 * 0.0) / 6, 0.0)
    assert estimates["all/uauc"] == ((3.5 / 4 + 1.0) / 2, (0.5 / 4 + 0.0) / 2, 0.0)
    # pooled, bins [.., 2) and [2, ..): positives 1 and 2, negatives 3 and 0: 9 pairs, 3 of them in one bin
    assert estimates["all/auc"] == ((6 + 3 / 2) / 9, 3 / 2 / 9, 0.0)


def test_equal_to_own_metrics_of_binned_scores_to_the_last_bit() -> None:
    log = Log.drawn(5000, 300)
    form = Histograms(users=400, bins=13, pooled_bins=7, low=-2.0, high=3.0)
    metric = SlicedAuc(form, slice_items(np.arange(1, 21), np.arange(20, dtype=np.int64) // 4, 0.2, 0.5))
    for start in range(0, 5000, 700):
        rows = slice(start, start + 700)
        metric.update(*(torch.from_numpy(column[rows]) for column in (log.score, log.label, log.user, log.item)))
    values = metric.compute()
    score = log.score.astype(np.float64)
    binned = {bins: np.floor((score + 2.0) * (bins / 5.0)).clip(0, bins - 1) for bins in (13, 7)}
    slices = slice_items(np.arange(1, 21), np.arange(20, dtype=np.int64) // 4, 0.2, 0.5)
    for name, mask in slices.masks(log.item):
        by_user = measure(log.label[mask], binned[13][mask], log.user[mask])
        pooled = measure(log.label[mask], binned[7][mask], log.user[mask])
        # users come in another order, and sums of floating-point numbers depend on it
        assert values[f"{name}/gauc"].item() == pytest.approx(by_user["gauc"], abs=1e-14)
        assert values[f"{name}/uauc"].item() == pytest.approx(by_user["uauc"], abs=1e-14)
        assert values[f"{name}/auc"].item() == pooled["auc"]


@pytest.mark.parametrize("bins", [2, 8, 64])
def test_bins_move_the_value_by_no_more_than_the_bound(bins: int) -> None:
    log, uauc = Log.drawn(4000, 100), Uauc(Histograms(users=200, bins=bins, pooled_bins=bins, low=-4.0, high=7.0))
    for batch in log.batches(500):
        uauc.update(*batch)
    exact = defined(log.measured())
    for name in ("auc", "gauc", "uauc"):
        value, ties, _ = uauc.estimates()[f"all/{name}"]
        assert 0 < abs(value - exact[name]) <= ties


@pytest.mark.parametrize("batch", [1, 50, 4000])
def test_the_sample_holds_all_rows_of_the_users_with_the_smallest_keys(batch: int) -> None:
    log, gauc = Log.drawn(4000, 500), Gauc(Histograms(users=40, bins=1000, low=-4.0, high=8.0))
    for rows in log.batches(batch):
        gauc.update(*rows)
    users = torch.from_numpy(np.unique(log.user))
    sampled = users[user_keys(users).argsort()[:40]].numpy()
    expected = log.measured(np.isin(log.user, sampled))
    assert isinstance(gauc.by_user, Tensor)
    value, ties, sampling = gauc.estimates()["all/gauc"]
    assert value == pytest.approx(expected["gauc"], abs=ties + 1e-14)
    assert ties < 0.02
    assert sampling > 0
    assert gauc.by_user.sum() == expected["rows"]


def test_keys_are_splitmix64s_and_no_two_users_share_one() -> None:
    assert [key % 2**64 for key in user_keys(torch.tensor([1, -7, 2**62])).tolist()] == [
        _finalised(user % 2**64) for user in (1, -7, 2**62)
    ]
    assert len(user_keys(torch.arange(-100_000, 100_000)).unique()) == 200_000


def _finalised(key: int) -> int:
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
    return key ^ key >> 31


def test_the_sampled_share_is_read_off_the_keys() -> None:
    key_K = torch.tensor([-(2**63), -(2**62), FREE])
    assert sampled_share(key_K) == 1.0, "a free place: nobody was left out"
    assert sampled_share(key_K[:2]) == 1 / 4
    users = user_keys(torch.arange(10_000))
    assert sampled_share(users.sort().values[:4000]) == pytest.approx(0.4, abs=0.02)  # 4 standard deviations


def test_the_standard_error_is_that_of_the_sample() -> None:
    """Of 200 samples of 150 out of 1,000 users, about 95% should be less than 1.96 standard errors away.

    Scores are multiples of 0.1 and bins finer, so that bins hide nothing here.
    """
    log = Log.drawn(20_000, 995)
    exact, inside = defined(log.measured()), {"gauc": 0, "uauc": 0}
    for seed in range(200):
        gauc = Gauc(Histograms(users=150, bins=400, low=-5.0, high=8.0))
        relabelled = torch.from_numpy(log.user) + seed * 1_000_003  # other ids, another sample
        gauc.update(torch.from_numpy(log.score), torch.from_numpy(log.label), relabelled)
        for name in inside:
            value, _, sampling = gauc.estimates()[f"all/{name}"]
            inside[name] += abs(value - exact[name]) <= 1.96 * sampling
    assert 180 <= inside["gauc"] <= 198
    assert 180 <= inside["uauc"] <= 198


@pytest.mark.real_data
def test_on_movielens_within_the_stated_errors_of_exact(real_data: Path) -> None:
    ratings = pd.read_csv(real_data / "ml-latest-small" / "ratings.csv").sort_values("timestamp", kind="stable")
    label = (ratings["rating"] >= 4).to_numpy().astype(np.float32)
    likes = ratings.assign(liked=label).groupby("movieId")["liked"]
    share = (likes.cumsum() - label + 1) / (likes.cumcount() + 2)  # as of the row
    score = np.log((share / (1 - share)).to_numpy()).astype(np.float32)
    columns = score, label, ratings["userId"].to_numpy(copy=True)
    exact = defined(measure(columns[1], columns[0], columns[2]))
    assert exact["gauc"] == pytest.approx(0.6766, abs=5e-5)
    readme = {16_384: Estimate(0.6763, 0.0330, 0.0), 100: Estimate(0.6721, 0.0353, 0.0080)}
    for users, expected in readme.items():
        gauc = Gauc(Histograms(users=users))
        for start in range(0, len(score), 4096):
            gauc.update(*(torch.from_numpy(column[start : start + 4096]) for column in columns))
        estimates = gauc.estimates()
        assert estimates["all/gauc"] == pytest.approx(expected, abs=5e-5)
        for name in ("auc", "gauc", "uauc"):
            value, ties, sampling = estimates[f"all/{name}"]
            assert abs(value - exact[name]) <= ties + 3 * sampling


def test_reset_and_resume() -> None:
    log, whole = Log.drawn(3000, 500), Gauc(Histograms(users=50, bins=32))
    batches = list(log.batches(100))
    for rows in batches[:15]:
        whole.update(*rows)
    resumed = Gauc(Histograms(users=50, bins=32))
    resumed.load_state_dict(whole.state_dict())
    for rows in batches[15:]:
        whole.update(*rows)
        resumed.update(*rows)
    assert resumed.estimates() == whole.estimates()
    whole.reset()
    assert whole.compute().isnan()
    for rows in batches:
        whole.update(*rows)
    assert resumed.estimates() == whole.estimates()
