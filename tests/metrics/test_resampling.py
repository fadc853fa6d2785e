"""Metrics on resamples against rows repeated by hand."""

from dataclasses import replace

import numpy as np
import pytest

from sidrec.metrics.exact import measure
from sidrec.metrics.pairs import Ints
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.resampling import (
    CHUNK,
    ITEM_SEED,
    METRICS,
    MOST_VALUES,
    SEED,
    MeanAuc,
    PooledAuc,
    chunk_of,
    multiplicities,
    resample,
)

ROWS, USERS, ITEMS, RESAMPLES = 600, 60, 12, 20


def predictions(rows: int = ROWS, users: int = USERS, items: int = ITEMS) -> Predictions:
    """Scores with heavy ties; ids with gaps."""
    random = np.random.default_rng(1)
    label = (random.random(rows) < 0.4).astype(np.float32)
    user, item = random.integers(1, users + 1, rows) * 10, random.integers(1, items + 1, rows) * 3
    score = np.round(0.7 * label + random.normal(size=rows), 1).astype(np.float32)
    return Predictions("test", np.arange(rows), user, item, label, score)


def repeated(found: Predictions, users: dict[int, int], items: dict[int, int] | None) -> dict[str, float]:
    """Metrics of a resample written out row by row: a user drawn twice is two users, an item drawn twice two rows."""
    order, user = [], []
    for row in range(len(found)):
        copies = 1 if items is None else items[int(found.item_N[row])]
        for copy in range(users[int(found.user_N[row])]):
            order += [row] * copies
            user += [100 * int(found.user_N[row]) + copy] * copies
    metrics = measure(found.label_N[order], found.score_N[order], np.array(user, dtype=np.int64))
    return {name: np.nan if (value := metrics[name]) is None else float(value) for name in METRICS}


def drawn(ids: Ints, seed: int) -> list[dict[int, int]]:
    """How often each id is drawn, by resample."""
    unique = np.unique(ids)
    times_RV = np.concatenate(list(multiplicities(len(unique), RESAMPLES, seed)))
    return [dict(zip(unique.tolist(), times_V.tolist(), strict=True)) for times_V in times_RV]


@pytest.mark.parametrize(("rows", "users"), [(ROWS, USERS), (60, 20)])  # 60: most users have one class
@pytest.mark.parametrize("crossed", [False, True])
def test_a_resample_equals_rows_repeated_by_hand(crossed: bool, rows: int, users: int) -> None:
    found = predictions(rows, users)
    mask_N = found.item_N <= 15
    part = replace(found, **{name: getattr(found, name)[mask_N] for name in ("user_N", "item_N", "label_N", "score_N")})
    result = resample(found, {"few": mask_N}, RESAMPLES, ["few"] if crossed else [])
    user_draws = drawn(found.user_N, SEED)  # all users are drawn, also those without rows in the slice
    item_draws = drawn(part.item_N, ITEM_SEED) if crossed else [None] * RESAMPLES
    part = replace(part, row_N=np.arange(mask_N.sum()))
    expected = [repeated(part, *of) for of in zip(user_draws, item_draws, strict=True)]
    actual = measure(part.label_N, part.score_N, part.user_N)
    for metric in METRICS:
        values_R = result.resampled_R[("few", metric)].tolist()
        assert values_R == pytest.approx([of[metric] for of in expected], abs=1e-12, nan_ok=True), metric
        assert len(set(values_R)) > 5, metric
        assert result.actual[("few", metric)] == pytest.approx(actual[metric], abs=1e-12), metric


def test_chunks_do_not_change_the_draws() -> None:
    chunks = list(multiplicities(7, CHUNK + 3, seed=0))
    assert [len(chunk) for chunk in chunks] == [CHUNK, 3]
    assert all((chunk.sum(axis=1) == 7).all() for chunk in chunks)
    again = np.concatenate(list(multiplicities(7, CHUNK + 3, seed=0, chunk=4)))
    assert np.array_equal(np.concatenate(chunks), again)
    assert not np.array_equal(chunks[0], next(multiplicities(7, CHUNK, seed=1)))


def test_rows_times_resamples_at_a_time_are_bounded() -> None:
    assert [chunk_of(rows) for rows in (0, 1000, MOST_VALUES // 4, 3 * MOST_VALUES)] == [CHUNK, CHUNK, 4, 1]


def test_a_resample_without_one_class_is_undefined() -> None:
    label, score, user = np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([0, 1])
    auc = PooledAuc.of(label, score, user).resampled(np.array([[1, 1], [2, 0], [0, 2]]))
    assert auc[0] == 1.0
    assert np.isnan(auc[1:]).all()
    assert np.isnan(MeanAuc.gauc(label, score, user, 2).resampled(np.array([[1, 1]]))).all()


@pytest.mark.parametrize("crossed", [False, True])
def test_a_slice_without_rows_is_undefined(crossed: bool) -> None:
    result = resample(predictions(), {"none": np.zeros(ROWS, dtype=bool)}, 3, ["none"] if crossed else [])
    assert np.isnan(list(result.actual.values())).all()
    assert np.isnan(np.stack(list(result.resampled_R.values()))).all()
    assert {len(values_R) for values_R in result.resampled_R.values()} == {3}
