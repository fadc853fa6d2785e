"""Did a run that was killed end as one that was not?"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sidrec.train.ledger_check import ROW, STEP, TRAINED, check_ledger, ledger_files, read_ledger

SPEED = "samples_per_second"  # of this start, not of the run


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference of a loss in metrics.jsonl and of a number in metrics.json; infinite where they have
    other keys, or what is no number differs."""

    losses: float
    metrics: float


EXACT = Difference(0.0, 0.0)
ACROSS_WORLDS = Difference(1e-6, 1e-4)
"""What may differ in any case where ranks have changed: they add in another order. An AUC moves in steps, of 5e-5 where
two rows of the smallest slice change places."""
APART = 2
"""Times what uninterrupted runs on other numbers of ranks differ by: how far a run that changed among them may go."""


@dataclass(frozen=True)
class Verdict:
    """complaints: what is not as it should be."""

    complaints: tuple[str, ...]
    found: Difference


def across_worlds(runs: Sequence[Path]) -> Difference:
    """What a run whose ranks changed may differ by, seen from runs that nobody struck, each on other ranks."""
    pairs = list(combinations(runs, 2))
    losses = max((difference(_log(one), _log(other)) for one, other in pairs), default=0.0)
    metrics = max((difference(_metrics(one), _metrics(other)) for one, other in pairs), default=0.0)
    return Difference(max(ACROSS_WORLDS.losses, APART * losses), max(ACROSS_WORLDS.metrics, APART * metrics))


def compare(reference: Path, run: Path, allowed: Difference) -> Verdict:
    """Two run directories: metrics, the log of training, and the ledger, whose rows must be equal in any case."""
    found = Difference(difference(_log(reference), _log(run)), difference(_metrics(reference), _metrics(run)))
    complaints = [
        f"{name} differs from the uninterrupted run's by {by:.3g}"
        for name, by, most in (
            ("metrics.json", found.metrics, allowed.metrics),
            ("metrics.jsonl", found.losses, allowed.losses),
        )
        if by > most
    ]
    complaints += [f"ledger: {epoch}" for epoch in check_ledger(run) if not epoch.exact]
    if not np.array_equal(_ledger(reference), _ledger(run)):
        complaints.append("ledger: other rows in some step than the uninterrupted run's")
    complaints += [f"left behind: {path.relative_to(run)}" for path in sorted(run.rglob("*.partial*"))]
    return Verdict(tuple(complaints), found)


def difference(one: Any, other: Any) -> float:
    """Largest difference of the numbers in two JSON values; infinite where they differ in anything else."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((difference(*both) for both in zip(one, other, strict=True)), default=0.0)
    if one == other:
        return 0.0
    if isinstance(one, float) and isinstance(other, float) and math.isfinite(one) and math.isfinite(other):
        return abs(one - other)
    return math.inf


def _metrics(run: Path) -> Any:
    return json.loads((run / "metrics.json").read_text())


def _log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != SPEED} for line in lines]


def _ledger(run: Path) -> np.ndarray:
    """int64 [rows, 3]: step, row, whether it was trained on. Sorted: which rank had a row depends on their number."""
    table = pa.concat_tables([read_ledger(path) for path in ledger_files(run / "ledger")])
    columns = [table[name].to_numpy().astype(np.int64) for name in (STEP, ROW, TRAINED)]
    return np.stack(columns, axis=1)[np.lexsort(columns[::-1])]
