"""The metrics of a variant over its seeds, and its differences to the references."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from benchmarks.study.bootstrap_file import Bootstrap
from benchmarks.study.definition import Column
from benchmarks.study.differences import Difference
from benchmarks.study.store import RunResult


def slice_and_metric(column: Column) -> tuple[str, str]:
    """Where a column's value stands: "tail AUC" is ("tail", "auc"), "AUC" is ("all", "auc")."""
    *items, metric = column.lower().split()
    return (items[0] if items else "all"), metric


class Spread(TypedDict):
    """Mean and sample standard deviation over seeds (sd null for one seed), and each seed's value."""

    mean: float
    sd: float | None
    values: list[float]


class VariantSummary(TypedDict):
    """item_parameters: numbers in the tables of items, the HIDs' and the SIDs'; None where runs do not tell."""

    seeds: list[int]
    item_parameters: int | None
    cpu_seconds: float
    metrics: dict[str, Spread | None]
    differences: dict[str, dict[str, Difference | None]]


def summarize(
    runs: Sequence[RunResult], split: str, columns: Sequence[Column], bootstrap: Bootstrap | None
) -> VariantSummary:
    """One variant's columns over its seeds, and its differences to the references."""
    variant = runs[0]["variant"]
    differences = bootstrap["differences"] if bootstrap else {}
    places = {column: slice_and_metric(column) for column in columns}
    return VariantSummary(
        seeds=[run["seed"] for run in runs],
        item_parameters=_item_parameters(runs),
        cpu_seconds=round(float(np.mean([run["cpu_seconds"] for run in runs])), 1),
        metrics={
            column: spread([run["metrics"][split][items][metric] for run in runs])
            for column, (items, metric) in places.items()
        },
        differences={
            reference: {column: variants[variant][items][metric] for column, (items, metric) in places.items()}
            for reference, variants in differences.items()
            if variant in variants
        },
    )


def _item_parameters(runs: Sequence[RunResult]) -> int | None:
    parameters = runs[0]["run"].get("parameters")
    return int(parameters["item_parameters"]) if isinstance(parameters, dict) else None


def spread(values: Sequence[float | int | None]) -> Spread | None:
    """None when a seed left the metric undefined."""
    known = [float(value) for value in values if value is not None]
    if len(known) < len(values):
        return None
    return Spread(mean=float(np.mean(known)), sd=float(np.std(known, ddof=1)) if len(known) > 1 else None, values=known)
