"""Did a run that was killed end as one that was not?"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sidrec.train.ledger_check import check_ledger
from sidrec.train.row_ledger import ROW, STEP, TRAINED, ledger_files, read_ledger

SPEED = "samples_per_second"  # of this start, not of the run


@dataclass(frozen=True)
class Verdict:
    """complaints: what is not as it should be. largest: the largest difference of a loss or metric, infinite where one
    has none to be compared with."""

    complaints: tuple[str, ...]
    largest: float


def compare(reference: Path, run: Path, tolerance: float) -> Verdict:
    """Two run directories: metrics, the log of training, and the ledger, whose rows must be equal in any case.

    tolerance: largest difference of a number; 0 where every bit must be equal.
    """
    of_metrics = difference(_metrics(reference), _metrics(run))
    of_log = difference(_log(reference), _log(run))
    complaints = [
        f"{name} differs from the uninterrupted run's by {found:.3g}"
        for name, found in (("metrics.json", of_metrics), ("metrics.jsonl", of_log))
        if found > tolerance
    ]
    complaints += [f"ledger: {epoch}" for epoch in check_ledger(run) if not epoch.exact]
    if not np.array_equal(_ledger(reference), _ledger(run)):
        complaints.append("ledger: other rows in some step than the uninterrupted run's")
    complaints += [f"left behind: {path.relative_to(run)}" for path in sorted(run.rglob("*.partial*"))]
    return Verdict(tuple(complaints), max(of_metrics, of_log))


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
