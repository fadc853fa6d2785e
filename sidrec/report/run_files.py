"""What a run directory holds, read for a report: every part may be missing, as in a run that has not ended.

Shapes: N rows of a split, I items.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sidrec.config import Recipe
from sidrec.errors import ConfigError, ContractError, SidrecError
from sidrec.io.files import read_json
from sidrec.io.places import Place, place
from sidrec.metrics.exact import SliceMetrics, SplitMetrics, load_metrics
from sidrec.metrics.predictions import Predictions, load_predictions
from sidrec.metrics.resampling import Scored, resample
from sidrec.metrics.slices import ItemSlices, recipe_slices
from sidrec.report.charts import Bin
from sidrec.sid.catalog import REPORT
from sidrec.study.intervals import LEVEL, RESAMPLES, interval
from sidrec.text import near_folder, quoted
from sidrec.train.run_directory import EVALUATION, RunDirectory

ROWS_RESAMPLED = 40_000_000  # rows times resamples of a bootstrap, at most; it takes about a minute
LEAST_RESAMPLES = 100
BINS = 20


class RunFiles:
    """The files of one run, or of a run's evaluation on another data folder. Raises ConfigError if there is neither.

    run: the folder with the results. trained: the run directory; the same, but for other data. recipe: with the data
    that was scored.
    """

    def __init__(self, path: Path) -> None:
        self.run = RunDirectory(path)
        other = self._json(path / EVALUATION, "the facts of an evaluation")
        self.trained = self.run if other is None else RunDirectory(Path(other["run"]))
        if other is None and not self.run.config.is_file():
            near = near_folder(path, self.run.config.name)
            raise ConfigError(f"{quoted(path)}: expected a run directory with config.yaml, got none{near}")
        self.recipe: Recipe = self.trained.recipe()
        if other is not None:
            self.recipe = replace(self.recipe, data=replace(self.recipe.data, path=place(other["data"])))
        self.facts: dict[str, Any] = self._json(self.trained.facts, "the facts of a run") or {}
        self.log = _lines(self.trained.log)
        self.skipped = _lines(self.trained.skipped)
        self.evaluations = _lines(self.trained.evaluations)
        self.metrics: SplitMetrics = load_metrics(self.run.metrics) if self.run.metrics.exists() else {}
        warned = self.run.warnings
        self.warnings = warned.read_text(encoding="utf-8", errors="replace").splitlines() if warned.exists() else []

    def _json(self, path: Place, what: str) -> dict[str, Any] | None:
        if not path.exists():
            return None
        found = read_json(path, what)
        if not isinstance(found, dict):
            raise ContractError(path, f"{what}, by name", f"a {type(found).__name__}")
        return found

    def attention(self, split: str) -> dict[str, Any] | None:
        """Weights by granularity; None without a fusion."""
        return self._json(self.run.attention(split), "attention weights")

    def gate(self, split: str) -> dict[str, Any] | None:
        """The gate by decile of exposure; None without a gate."""
        return self._json(self.run.path / f"gate_{split}.json", "gate values")

    def predictions(self, split: str) -> Predictions | None:
        """None if they were not saved."""
        path = self.run.predictions(split)
        return load_predictions(path, split) if path.exists() else None

    @cached_property
    def slices(self) -> ItemSlices | None:
        """None where the data folder cannot be read from here."""
        try:
            return recipe_slices(self.recipe)
        except SidrecError:
            return None

    @cached_property
    def codes(self) -> "Codes | str":
        """Quality of the catalog, or why it is not known."""
        if self.recipe.model.item.sids is None:
            return f"Items of kind {self.recipe.model.item.kind} have no SIDs."
        folder = self.recipe.data.catalog
        found = self._json(folder / REPORT, "a catalog's report")
        if found is None or "quality" not in found:
            return f"No catalog at {folder}. Paths are relative to the folder in which the run was trained."
        return Codes(found["quality"], folder)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a line that is being written, or is damaged, is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [line for line in found if isinstance(line, dict)]


@dataclass(frozen=True)
class Codes:
    """quality: fields of `sidrec.sid.quality.CodeQuality`."""

    quality: dict[str, Any]
    folder: Place


@dataclass(frozen=True)
class Interval:
    """A metric with its bootstrap interval over users. low, high: None where no resample defines it."""

    found: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ScoredSplit:
    """metrics: by slice. items: distinct items of the slice's rows. intervals, resamples: empty and 0 without
    predictions."""

    split: str
    metrics: SliceMetrics
    items: dict[str, int]
    intervals: dict[Scored, Interval]
    resamples: int
    predictions: Predictions | None


def resamples_for(rows: int) -> int:
    """Fewer for many rows, so that a report takes no longer than a minute."""
    return max(LEAST_RESAMPLES, min(RESAMPLES, ROWS_RESAMPLED // max(1, rows)))


def scored_split(files: RunFiles, split: str) -> ScoredSplit:
    """Metrics of a split with intervals, where predictions and items can be read."""
    predictions = files.predictions(split)
    slices = files.slices
    if predictions is None or slices is None or not len(predictions):
        return ScoredSplit(split, files.metrics[split], {}, {}, 0, predictions)
    masks = dict(slices.masks(predictions.item_N))
    items = {name: len(np.unique(predictions.item_N[mask_N])) for name, mask_N in masks.items()}
    resamples = resamples_for(len(predictions))
    found = resample(predictions, masks, resamples)
    intervals = {key: _interval(value, found.resampled_R[key]) for key, value in found.actual.items()}
    return ScoredSplit(split, files.metrics[split], items, intervals, resamples, predictions)


def _interval(found: float, resampled_R: np.ndarray) -> Interval:
    defined_R = resampled_R[~np.isnan(resampled_R)]
    if np.isnan(found) or not len(defined_R):
        return Interval(found, None, None)
    ends = interval(found, defined_R)
    return Interval(found, ends["low"], ends["high"])


def reliability(predictions: Predictions) -> list[Bin]:
    """Rows in equal bins of predicted probability, from 0 to the highest; bins without rows are left out.

    Intervals of the share of positives: Wilson's, at LEVEL.
    """
    probability_N = 1 / (1 + np.exp(-predictions.score_N.astype(np.float64)))
    highest = float(probability_N.max()) or 1.0
    bin_N = np.minimum((probability_N / highest * BINS).astype(int), BINS - 1)
    bins = []
    for number in np.unique(bin_N):
        inside_N = bin_N == number
        rows, share = int(inside_N.sum()), float(predictions.label_N[inside_N].mean())
        low, high = wilson(share, rows)
        bins.append(Bin(float(probability_N[inside_N].mean()), share, low, high, rows))
    return bins


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Wilson's score interval of a share, at LEVEL (Wilson 1927)."""
    z = {0.95: 1.959964}[LEVEL]
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * float(np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2)))
    return max(0.0, middle - half), min(1.0, middle + half)
