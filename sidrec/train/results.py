"""metrics.json (split -> slice -> metric) and the plain-text tables made from it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from sidrec.schema import ContractError, read_json
from sidrec.sentence import short_repr
from sidrec.train.metrics import PROBABILITY, RANKING, Metrics, measure, reasons
from sidrec.train.predictions import Predictions
from sidrec.train.slices import SLICES, ItemSlices

METRICS_FILE = "metrics.json"
SliceMetrics = dict[str, Metrics]  # slice -> metric -> value
SplitMetrics = dict[str, SliceMetrics]  # split -> slice -> metric -> value

QUALITY = (*RANKING, *PROBABILITY)


def measure_slices(predictions: Predictions, slices: ItemSlices) -> SliceMetrics:
    """All metrics on all rows and on the rows of head, torso, tail and cold items."""
    return {
        name: measure(predictions.label_N[mask_N], predictions.score_N[mask_N], predictions.user_N[mask_N])
        for name, mask_N in slices.masks(predictions.item_N)
    }


def undefined(metrics: SplitMetrics) -> list[str]:
    """One line per split and reason why metrics are null, naming the slices; empty when all are defined."""
    by_reason: dict[tuple[str, str, str], list[str]] = {}
    for split, slices in metrics.items():
        for name, values in slices.items():
            for reason, which in reasons(values).items():
                by_reason.setdefault((split, which, reason), []).append(name)
    return [
        f"split {split}, {', '.join(names)} items: {which} undefined, {reason}"
        for (split, which, reason), names in by_reason.items()
    ]


def save_metrics(metrics: SplitMetrics, path: Path) -> None:
    """Writes metrics.json whole or not at all; an undefined metric is null."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_metrics(path: Path) -> SplitMetrics:
    """Reads metrics.json. Raises ContractError when it is not split -> slice -> metric."""
    raw: SplitMetrics = read_json(path, "a readable metrics file")
    slices = list(raw.values()) if isinstance(raw, dict) else [raw]
    if not all(isinstance(split, dict) and all(isinstance(m, dict) for m in split.values()) for split in slices):
        raise ContractError(path, "split -> slice -> metric", "another structure")
    for split, of_split in raw.items():
        for name, values in of_split.items():
            for metric, value in values.items():
                if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                    raise ContractError(f"{path}, {split}, {name}, {metric}", "a number or null", short_repr(value))
    return raw


def metrics_table(metrics: SplitMetrics) -> str:
    """One run: a line per split and slice, aligned; "-" where a metric is undefined."""
    lines = {
        (split, name): {metric: values.get(metric) for metric in ("rows", *QUALITY)}
        for split, slices in metrics.items()
        for name, values in slices.items()
    }
    return _aligned(lines, ("split", "items"))


def comparison_table(
    runs: Mapping[str, SplitMetrics], split: str, slices: Sequence[str] = SLICES, metrics: Sequence[str] = QUALITY
) -> str:
    """Several runs side by side: a block per slice, in it a line per run, aligned.

    Raises ContractError naming the run that has no such split, slice or metric.
    """
    lines = {}
    for name in slices:
        for run, run_metrics in runs.items():
            values = run_metrics.get(split, {}).get(name, {})
            missing = [metric for metric in ("rows", *metrics) if metric not in values]
            if missing:
                raise ContractError(f"metrics of {run}, split {split}, slice {name}", f"{missing}", list(values))
            lines[(name, run)] = {"rows": values["rows"], **{metric: values[metric] for metric in metrics}}
    return _aligned(lines, ("items", "run"))


def _aligned(lines: Mapping[tuple[str, str], Metrics], names: tuple[str, str]) -> str:
    if not lines:
        return "no metrics"
    rows = [
        dict(zip(names, key, strict=True)) | {column: _cell(value) for column, value in values.items()}
        for key, values in lines.items()
    ]
    return pd.DataFrame(rows).to_string(index=False)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
