"""The headline metrics of a variant over its seeds, and its differences to the references."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from benchmarks.study.bootstrap_file import Bootstrap
from benchmarks.study.differences import Difference
from benchmarks.study.store import RunResult

HEADLINE = {"AUC": ("all", "auc"), "GAUC": ("all", "gauc"), "tail AUC": ("tail", "auc"), "cold AUC": ("cold", "auc")}


class Spread(TypedDict):
    """Mean and sample standard deviation over seeds (sd null for one seed), and each seed's value."""

    mean: float
    sd: float | None
    values: list[float]


class VariantSummary(TypedDict):
    seeds: list[int]
    cpu_seconds: float
    metrics: dict[str, Spread | None]
    differences: dict[str, dict[str, Difference | None]]


def summarize(runs: Sequence[RunResult], split: str, bootstrap: Bootstrap | None) -> VariantSummary:
    """One variant's headline metrics over its seeds, and its differences to the references."""
    variant = runs[0]["variant"]
    differences = bootstrap["differences"] if bootstrap else {}
    return VariantSummary(
        seeds=[run["seed"] for run in runs],
        cpu_seconds=round(float(np.mean([run["cpu_seconds"] for run in runs])), 1),
        metrics={
            title: spread([run["metrics"][split][items][metric] for run in runs])
            for title, (items, metric) in HEADLINE.items()
        },
        differences={
            reference: {title: variants[variant][items][metric] for title, (items, metric) in HEADLINE.items()}
            for reference, variants in differences.items()
            if variant in variants
        },
    )


def spread(values: Sequence[float | int | None]) -> Spread | None:
    """None when a seed left the metric undefined."""
    known = [float(value) for value in values if value is not None]
    if len(known) < len(values):
        return None
    return Spread(mean=float(np.mean(known)), sd=float(np.std(known, ddof=1)) if len(known) > 1 else None, values=known)
