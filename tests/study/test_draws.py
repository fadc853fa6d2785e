"""Draws of a run: what they hold, their rounding, and runs that cannot be compared."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from sidrec.metrics.exact import measure, measure_slices
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.resampling import METRICS, resample
from sidrec.metrics.slices import ItemSlices, slice_items
from sidrec.schema import ContractError
from sidrec.study.definition import Study
from sidrec.study.draws import (
    RESAMPLES,
    SLICES,
    RunDraws,
    draws_row,
    draws_table,
    measure_draws,
    recorded_draws,
    rows_digest,
    study_masks,
)
from tests.metrics.test_resampling import ITEMS, predictions


def _slices() -> ItemSlices:
    """Items 3, 6, .. 36: eight head or torso, two warm tail (27, 30), two cold (33, 36)."""
    return slice_items(np.arange(1, ITEMS + 1) * 3, np.array([9] * 8 + [1] * 2 + [0] * 2), 0.1, 1 / 3)


def test_the_tail_is_divided_into_warm_and_cold() -> None:
    masks = study_masks(_slices(), np.array([0, 3, 27, 30, 33, 36]))
    found = {name: mask_N.astype(int).tolist() for name, mask_N in masks.items()}
    assert found == {
        "all": [1, 1, 1, 1, 1, 1],
        "tail": [0, 0, 1, 1, 1, 1],
        "warm_tail": [0, 0, 1, 1, 0, 0],
        "cold": [0, 0, 0, 0, 1, 1],
    }


def test_draws_hold_the_metrics_and_counts_of_every_slice() -> None:
    found = predictions()
    draws, measured = measure_draws(found, _slices()), measure_slices(found, _slices())
    warm_N = np.isin(found.item_N, [27, 30])
    warm = measure(found.label_N[warm_N], found.score_N[warm_N], found.user_N[warm_N])
    expected = {**measured, "warm_tail": warm}
    expected["warm_tail"]["items"] = 2
    for items in SLICES:
        assert [draws.actual[(items, metric)] for metric in METRICS] == pytest.approx(
            [expected[items][metric] for metric in METRICS]
        )
        assert vars(draws.counts[items]) == {name: expected[items][name] for name in vars(draws.counts[items])}


def test_only_the_cold_slice_draws_items_too() -> None:
    found, resamples = predictions(), 8
    draws, masks = measure_draws(found, _slices(), resamples), study_masks(_slices(), found.item_N)
    users, both = resample(found, masks, resamples), resample(found, masks, resamples, SLICES)
    for items in SLICES:
        drawn_R = draws.actual[(items, "auc")] + draws.offset_R[(items, "auc")].astype(np.float64)
        right, wrong = (both, users) if items == "cold" else (users, both)
        assert drawn_R.tolist() == pytest.approx(right.resampled_R[(items, "auc")].tolist(), abs=1e-4)
        assert drawn_R.tolist() != pytest.approx(wrong.resampled_R[(items, "auc")].tolist(), abs=1e-3)


def test_rounding_moves_an_offset_by_at_most_one_in_2048() -> None:
    found = predictions()
    draws, exact = measure_draws(found, _slices()), resample(found, study_masks(_slices(), found.item_N), RESAMPLES)
    for metric in METRICS:
        offset_R = exact.resampled_R[("all", metric)] - exact.actual[("all", metric)]
        error_R = np.abs(draws.offset_R[("all", metric)].astype(np.float64) - offset_R)
        assert (error_R <= np.abs(offset_R) * 2.0**-11 + 2.0**-25).all()  # 2**-25: of offsets below 6e-5
        assert error_R.max() > 0


def _row(variant: str, run: int, found: Predictions, **changes: Any) -> RunDraws:
    return cast(RunDraws, {**draws_row(("world", variant, run), "hash", measure_draws(found, _slices())), **changes})


def _result(variant: str, run: int) -> Any:
    return {"dataset": "world", "variant": variant, "run": run, "recipe_hash": "hash"}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(name="small", datasets={"world": tmp_path}, variants={"weak": {}, "strong": {}})


def test_recorded_draws_read_back_equal(study: Study, tmp_path: Path) -> None:
    found = replace(predictions(), user_N=np.arange(len(predictions())))  # no user has both classes: GAUC is undefined
    draws_table(study, tmp_path).put(_row("weak", 0, found))
    (key, read), *others = recorded_draws(study, tmp_path, {"world": {"weak": [_result("weak", 0)]}}).items()
    written = measure_draws(found, _slices())
    assert (key, others) == (("world", "weak", 0), [])
    assert (read.rows, read.counts) == (written.rows, written.counts)
    assert np.isnan(read.actual[("all", "gauc")])
    for scored, actual in written.actual.items():
        assert read.actual[scored] == pytest.approx(actual, nan_ok=True)
        assert np.array_equal(read.offset_R[scored], written.offset_R[scored], equal_nan=True)


def test_draws_of_another_recipe_are_not_taken(study: Study, tmp_path: Path) -> None:
    draws_table(study, tmp_path).put(_row("weak", 0, predictions(), recipe_hash="former"))
    assert recorded_draws(study, tmp_path, {"world": {"weak": [_result("weak", 0)]}}) == {}


def test_a_run_of_other_rows_is_refused_by_name(study: Study, tmp_path: Path) -> None:
    other = replace(predictions(), label_N=1 - predictions().label_N)
    draws_table(study, tmp_path).put(_row("weak", 0, predictions()))
    draws_table(study, tmp_path).put(_row("strong", 3, other))
    results = {"world": {"weak": [_result("weak", 0)], "strong": [_result("strong", 3)]}}
    with pytest.raises(ContractError, match="run world/strong/3: expected the rows of world/weak/0, split test"):
        recorded_draws(study, tmp_path, results)


@pytest.mark.parametrize("column", ["row_N", "user_N", "item_N", "label_N"])
def test_the_digest_is_of_rows_users_items_and_labels(column: str) -> None:
    found = predictions()
    changed = getattr(found, column).copy()
    changed[-1] += 1
    assert rows_digest(replace(found, **{column: changed})) != rows_digest(found)
    assert rows_digest(replace(found, score_N=found.score_N + 1)) == rows_digest(found)
