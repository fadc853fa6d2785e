"""Fits a map from a model's logits to probabilities, on rows that it was not trained on.

Both kinds are fitted to softened labels, (P + 1) / (P + 2) and 1 / (Q + 2) for P positives and Q negatives (Platt,
1999): no row gets a probability of 0 or 1, whose log loss would be infinite.

Shapes: N rows, K different logits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize

from sidrec.config import Recipe
from sidrec.errors import ConfigError
from sidrec.metrics.exact import Metrics, measure
from sidrec.metrics.predictions import Predictions
from sidrec.schema import Manifest
from sidrec.serve.calibration import Calibration, Kind

LEAST = 30
"""Positives, and negatives, that a fit needs: a rate of 30 events has a standard error of 18%."""
ROUNDED = (2.0**-126, 1 - 2.0**-24)
"""The least and the largest probability between 0 and 1 in float32; others round to 0 or 1."""
Floats = NDArray[np.float64]


def check_split(recipe: Recipe, manifest: Manifest, split: str) -> None:
    """Raises ConfigError for a split that the log lacks, or that the run was trained on."""
    trained_on = {"train", *recipe.data.train_on}
    others = sorted(manifest.splits.keys() - trained_on)
    if split in trained_on or split not in manifest.splits:
        why = ", which the run was trained on: its logits are too sure there" if split in trained_on else ""
        raise ConfigError(
            f"--calibrate: expected a split that was not trained on ({', '.join(others)}), got {split}{why}"
        )


def fit_calibration(kind: Kind, scored: Predictions) -> Calibration:
    """The map of this kind that fits the predictions of a split best.

    Raises ConfigError for too few rows of a class, and if the labels do not rise with the logits.
    """
    positives = int((scored.label_N > 0).sum())
    fewest = min(positives, len(scored) - positives)
    if fewest < LEAST:
        raise ConfigError(
            f"--calibrate {scored.split}: expected at least {LEAST} positive and {LEAST} negative rows, "
            f"got {positives:,} positive of {len(scored):,}"
        )
    soft_positive, soft_negative = (positives + 1) / (positives + 2), 1 / (len(scored) - positives + 2)
    target_N = np.where(scored.label_N > 0, soft_positive, soft_negative)
    fit = {"isotonic": _isotonic, "platt": _platt}[kind]
    values = fit(scored.score_N.astype(np.float64), target_N)
    if values is None:
        raise ConfigError(f"--calibrate {scored.split}: expected labels that rise with the logits, got others")
    return Calibration(kind, scored.split, len(scored), positives, **values)


def _isotonic(logit_N: Floats, target_N: Floats) -> dict[str, tuple[float, ...]] | None:
    """The ends of each constant piece; None for a constant map."""
    logit_K, place_N = np.unique(logit_N, return_inverse=True)
    rows_K = np.bincount(place_N)
    found = isotonic_regression(np.bincount(place_N, target_N) / rows_K, weights=rows_K)
    if len(found.blocks) < 3:
        return None
    ends = np.unique(np.concatenate([found.blocks[:-1], found.blocks[1:] - 1]))
    return {"logits": tuple(logit_K[ends].tolist()), "probabilities": tuple(found.x[ends].tolist())}


def _platt(logit_N: Floats, target_N: Floats) -> dict[str, float] | None:
    """Slope and intercept of least log loss; None without a slope above 0."""
    mean, deviation = logit_N.mean(), logit_N.std()
    if not deviation:
        return None
    scaled_N = (logit_N - mean) / deviation

    def loss_and_gradient(values: Floats) -> tuple[float, Floats]:
        made_N = values[0] * scaled_N + values[1]
        loss = np.mean(np.logaddexp(0, made_N) - target_N * made_N)
        error_N = np.exp(-np.logaddexp(0, -made_N)) - target_N
        return loss, np.array([np.mean(error_N * scaled_N), np.mean(error_N)])

    slope, intercept = minimize(loss_and_gradient, np.array([deviation, mean]), jac=True, method="BFGS").x
    if slope <= 0:
        return None
    return {"slope": float(slope / deviation), "intercept": float(intercept - slope * mean / deviation)}


@dataclass(frozen=True)
class Effect:
    """Metrics of a split's rows with the model's probabilities, and with the calibrated ones."""

    split: str
    before: Metrics
    after: Metrics

    def text(self) -> str:
        """Mean probability over mean label, and normalized entropy."""
        names = {"calibration": "calibration", "NE": "ne"}
        return ", ".join(f"{said} {_text(self.before[of])} to {_text(self.after[of])}" for said, of in names.items())


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def effect(calibration: Calibration, scored: Predictions) -> Effect:
    """What a map changes on the predictions of a split; the fairer for another one than it was fitted on."""
    wide_N = np.clip(calibration(scored.score_N).astype(np.float64), *ROUNDED)
    logit_N = np.log(wide_N) - np.log1p(-wide_N)
    before, after = (measure(scored.label_N, each_N, scored.user_N) for each_N in (scored.score_N, logit_N))
    return Effect(scored.split, before, after)
