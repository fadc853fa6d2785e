"""Calibrated probabilities: right on rows that the map was not fitted on, in the model's order, the same everywhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.export.calibrating import effect, fit_calibration
from sidrec.metrics.predictions import Predictions
from sidrec.serve.calibration import Kind
from sidrec.serve.protocol import answer, parse
from sidrec.serve.scorer import Scorer
from sidrec.serve.server import columns_of, outputs_of
from tests.serve.conftest import World
from tests.serve.test_protocol import LIMITS
from tests.serve.test_scorer import ranked
from tests.serve.test_server import body_of
from tests.train.refusals import refusal

KINDS: tuple[Kind, ...] = ("isotonic", "platt")


def too_sure(split: str, seed: int, rows: int = 20_000) -> Predictions:
    """Predictions of a model that ranks well, doubles logits and says clicks too often."""
    random = np.random.default_rng(seed)
    logit_N = random.normal(-2, 1.2, rows)
    label_N = (random.random(rows) < 1 / (1 + np.exp(-logit_N))).astype(np.float32)
    row_N = np.arange(rows)
    return Predictions(split, row_N, row_N % 50, row_N, label_N, (2 * logit_N + 2).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_another_split_become_right(kind: Kind) -> None:
    found = effect(fit_calibration(kind, too_sure("valid", seed=1)), too_sure("test", seed=2))
    before, after = found.before, found.after
    assert before["calibration"] is not None
    assert before["calibration"] > 1.2
    assert after["calibration"] == pytest.approx(1, abs=0.05)
    assert before["ne"] is not None
    assert after["ne"] is not None
    assert after["ne"] < before["ne"] - 0.1
    assert found.text().startswith("calibration 1.")


def test_a_line_of_platt_is_found_again_and_keeps_every_rank() -> None:
    made = fit_calibration("platt", too_sure("valid", seed=1, rows=200_000))
    assert made.slope == pytest.approx(0.5, abs=0.02)
    assert made.intercept == pytest.approx(-1, abs=0.04)
    logit_N = np.linspace(-9, 9, 1001, dtype=np.float32)
    assert (np.diff(made(logit_N)) > 0).all()


def test_an_isotonic_map_never_exchanges_two_rows_and_is_never_certain() -> None:
    made = fit_calibration("isotonic", too_sure("valid", seed=1))
    found_N = made(np.linspace(-50, 50, 100_001, dtype=np.float32))
    assert (np.diff(found_N) >= 0).all()
    assert 0 < found_N[0] < found_N[-1] < 1
    assert len(made.logits) < 200


def changed(scored: Predictions, **values: np.ndarray) -> Predictions:
    return Predictions(**{**vars(scored), **values})


@pytest.mark.parametrize("kind", KINDS)
def test_maps_that_cannot_be_fitted_are_refused(kind: Kind) -> None:
    few = changed(too_sure("valid", 1, rows=100), label_N=(np.arange(100) < 29).astype(np.float32))
    with pytest.raises(
        ValueError, match=r"--calibrate valid: expected at least 30 positive and .*, got 29 positive of 100"
    ):
        fit_calibration(kind, few)
    label_N = (np.arange(100) < 50).astype(np.float32)
    for score_N in (-label_N, np.zeros_like(label_N)):
        with pytest.raises(ValueError, match="expected labels that rise with the logits"):
            fit_calibration(kind, changed(few, label_N=label_N, score_N=score_N))


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        (
            "train",
            "--calibrate: expected a split that was not trained on (test), got train, which the run was trained on",
        ),
        ("valid", "--calibrate: expected a split that was not trained on (test), got valid\n"),
    ],
)
def test_splits_of_training_are_refused(
    world: World, tmp_path: Path, split: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, cli.main(["export", str(world.run), str(tmp_path / "bundle"), "--calibrate", split]))
    assert (said + "\n").startswith(sentence)
    assert not (tmp_path / "bundle").exists()


def test_files_requests_and_answers_have_both_probabilities(world: World, tmp_path: Path) -> None:
    scorer, bundle = Scorer(world.bundle), world.bundle
    calibration = scorer.model.description.calibration
    assert calibration is not None
    assert (calibration.split, calibration.rows) == ("test", 200)
    assert cli.main(["score", str(bundle), str(world.rows), str(tmp_path / "scores")]) == 0
    table = pq.read_table(tmp_path / "scores/part-00000.parquet")
    score_N, calibrated_N = (table[name].to_numpy() for name in ("score", "calibrated"))
    assert np.abs(score_N - world.probability_N).max() <= 1e-6
    expected_N = calibration((np.log(score_N) - np.log1p(-score_N)).astype(np.float32))
    assert np.abs(calibrated_N - expected_N).max() <= 1e-3  # logits of rounded probabilities, between near knots
    row = pq.read_table(world.rows).to_pylist()[0]
    of_row = ranked(scorer, row).calibrated_C
    assert of_row is not None
    assert abs(of_row[0] - calibrated_N[0]) <= 1e-6
    asked = parse(body_of(row), None, columns_of(scorer.model), LIMITS)
    content, _ = answer(asked, outputs_of(ranked(scorer, row)), "shop", scorer.model.version)
    head: Any = json.loads(content)
    assert [output["name"] for output in head["outputs"]] == ["score", "calibrated"]
    assert abs(head["outputs"][1]["data"][0] - calibrated_N[0]) <= 1e-6


def test_a_bundle_without_calibration_gives_none(world: World) -> None:
    scorer = Scorer(world.bundle)
    scorer.model.bundle.description = replace(scorer.model.description, calibration=None)
    row = pq.read_table(world.rows).to_pylist()[0]
    assert ranked(scorer, row).calibrated_C is None
    assert columns_of(scorer.model).outputs == ("score",)
