"""The bootstrap against rows repeated by hand, and intervals against cases with a known answer."""

from dataclasses import replace

import numpy as np
import pytest

from sidrec.metrics.exact import measure
from sidrec.metrics.pairs import Ints
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.slices import ItemSlices, slice_items
from sidrec.schema import ContractError
from sidrec.study.intervals import (
    CHUNK,
    SEED,
    Differences,
    MeanAuc,
    PooledAuc,
    bootstrap_differences,
    paired_interval,
    user_multiplicities,
)

ROWS, USERS, ITEMS = 600, 60, 12


def _predictions(skill: float, seed: int) -> Predictions:
    """The same rows for every skill and seed; scores with heavy ties."""
    rows = np.random.default_rng(1)
    label = (rows.random(ROWS) < 0.4).astype(np.float32)
    user, item = rows.integers(1, USERS + 1, ROWS) * 10, rows.integers(1, ITEMS + 1, ROWS)
    noise = np.random.default_rng(seed).normal(size=ROWS)
    score = np.round(skill * label + noise, 1).astype(np.float32)
    return Predictions("test", np.arange(ROWS), user, item, label, score)


def _slices() -> ItemSlices:
    return slice_items(np.arange(1, ITEMS + 1), np.array([9] * 8 + [1] * 2 + [0] * 2), 0.1, 0.5)


def _repeated(predictions: Predictions, users: Ints, times_V: Ints) -> tuple[float | None, float | None, float | None]:
    """AUC, GAUC and UAUC of a resample written out row by row: a user drawn twice is two users."""
    rows = [np.flatnonzero(predictions.user_N == user) for user in users]
    copies = [(rows[v], copy) for v, times in enumerate(times_V) for copy in range(int(times))]
    order = np.concatenate([row for row, _ in copies])
    user = np.concatenate([np.full(len(row), index) for index, (row, _) in enumerate(copies)])
    metrics = measure(predictions.label_N[order], predictions.score_N[order], user)
    return metrics["auc"], metrics["gauc"], metrics["uauc"]


def test_a_resample_equals_rows_repeated_by_hand() -> None:
    predictions = _predictions(0.7, seed=0)
    users, user_N = np.unique(predictions.user_N, return_inverse=True)
    times_RV = next(user_multiplicities(len(users), 20, seed=3))
    auc_R = PooledAuc.of(predictions.label_N, predictions.score_N, user_N).resampled(times_RV)
    gauc = MeanAuc.gauc(predictions.label_N, predictions.score_N, user_N, len(users))
    expected = [_repeated(predictions, users, times_V) for times_V in times_RV]
    assert auc_R.tolist() == pytest.approx([auc for auc, _, _ in expected], abs=1e-12)
    assert gauc.resampled(times_RV).tolist() == pytest.approx([gauc for _, gauc, _ in expected], abs=1e-12)
    assert gauc.uauc().resampled(times_RV).tolist() == pytest.approx([uauc for _, _, uauc in expected], abs=1e-12)


def test_every_resample_draws_as_many_users_as_there_are() -> None:
    chunks = list(user_multiplicities(7, CHUNK + 3, seed=0))
    assert [len(chunk) for chunk in chunks] == [CHUNK, 3]
    assert all((chunk.sum(axis=1) == 7).all() for chunk in chunks)
    again = list(user_multiplicities(7, CHUNK + 3, seed=0))
    assert all(np.array_equal(one, two) for one, two in zip(chunks, again, strict=True))
    assert not np.array_equal(chunks[0], next(user_multiplicities(7, CHUNK, seed=1)))


def test_a_resample_without_one_class_is_undefined() -> None:
    label, score, user = np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([0, 1])
    auc = PooledAuc.of(label, score, user).resampled(np.array([[1, 1], [2, 0], [0, 2]]))
    assert auc[0] == 1.0
    assert np.isnan(auc[1:]).all()
    assert np.isnan(MeanAuc.gauc(label, score, user, 2).resampled(np.array([[1, 1]]))).all()


def _compare(variants: dict[str, list[Predictions]]) -> Differences:
    return bootstrap_differences(variants, _slices(), ["base"])


def test_differences_are_those_of_the_mean_over_seeds() -> None:
    variants = {
        "base": [_predictions(0.3, 0), _predictions(0.3, 1)],
        "good": [_predictions(1.0, 2), _predictions(1.0, 3)],
    }
    found = _compare(variants)["base"]["good"]
    assert list(_compare(variants)["base"]) == ["good"]
    for items, mask_N in _slices().masks(variants["base"][0].item_N):
        if items not in ("all", "tail", "cold"):
            continue
        means = {
            name: {
                metric: np.mean(
                    [measure(p.label_N[mask_N], p.score_N[mask_N], p.user_N[mask_N])[metric] for p in seeds]
                )
                for metric in ("auc", "gauc")
            }
            for name, seeds in variants.items()
        }
        for metric in ("auc", "gauc"):
            difference = found[items][metric]
            assert difference is not None
            assert difference["difference"] == pytest.approx(means["good"][metric] - means["base"][metric], abs=1e-12)
    better = found["all"]["auc"]
    assert better is not None
    assert 0 < better["low"] < better["difference"] < better["high"]


def test_the_interval_is_that_of_the_written_out_bootstrap() -> None:
    base, good = _predictions(0.3, 0), _predictions(0.6, 1)
    compared = bootstrap_differences({"base": [base], "good": [good]}, _slices(), ["base"], resamples=60)
    found = compared["base"]["good"]["all"]
    users = np.unique(base.user_N)
    times_RV = np.concatenate(list(user_multiplicities(len(users), 60, SEED)))
    written_out = [(_repeated(good, users, times), _repeated(base, users, times)) for times in times_RV]
    for index, metric in enumerate(("auc", "gauc", "uauc")):
        moved = [ours[index] - theirs[index] for ours, theirs in written_out]  # type: ignore[operator]
        difference = found[metric]
        assert difference is not None
        assert [difference["low"], difference["high"]] == pytest.approx(np.quantile(moved, [0.025, 0.975]).tolist())
        assert difference["resamples"] == 60


def test_equal_models_differ_by_exactly_nothing_because_the_draws_are_paired() -> None:
    found = _compare({"base": [_predictions(0.5, 0)], "twin": [_predictions(0.5, 0)]})["base"]["twin"]["all"]["gauc"]
    assert found is not None
    assert (found["difference"], found["low"], found["high"]) == (0.0, 0.0, 0.0)


def test_a_slice_without_rows_has_no_difference() -> None:
    slices = slice_items(np.arange(1, ITEMS + 1), np.full(ITEMS, 5), 0.1, 0.5)  # nothing is cold
    found = bootstrap_differences({"base": [_predictions(0.5, 0)], "other": [_predictions(0.6, 0)]}, slices, ["base"])
    assert found["base"]["other"]["cold"] == {"auc": None, "gauc": None, "uauc": None}


def test_runs_of_other_rows_are_refused() -> None:
    base = _predictions(0.5, 0)
    other = replace(base, label_N=1 - base.label_N)
    with pytest.raises(ContractError, match="predictions of other: expected the rows of every other run of split test"):
        _compare({"base": [base], "other": [other]})


def test_paired_interval_is_the_t_interval_of_the_pairs() -> None:
    found = paired_interval([0.3, 0.5, 0.4], [0.2, 0.2, 0.2])
    # differences .1 .3 .2: mean .2, sd .1, standard error .1 / sqrt(3); t quantile of two degrees of freedom 4.302653
    assert found["difference"] == pytest.approx(0.2)
    assert found["high"] == pytest.approx(0.2 + 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert found["low"] == pytest.approx(0.2 - 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert found["p"] == pytest.approx(0.0742, abs=1e-4)
    assert (found["pairs"], found["positive"]) == (3, 3)
    assert paired_interval([0.3], [0.2])["low"] is None
