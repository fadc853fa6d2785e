"""How long a run will take: by what an earlier run of that name logged, or by steps just measured; else it is unknown.

Shapes: S measured steps or lines of a log.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from sidrec.config import ConfigError, Recipe, load_file
from sidrec.preflight.finding import Finding

LEAST = 3
"""Lines of a log, or measured steps, that a rate is taken from at least; the first one has the start in it."""


@dataclass(frozen=True)
class Rate:
    """Samples a second over all ranks: median, and 10% and 90% quantile. source: where from, and under which
    conditions."""

    p10: float
    p50: float
    p90: float
    source: str

    @classmethod
    def of(cls, samples_per_second_S: Sequence[float], source: str) -> "Rate":
        """Of at least one measurement."""
        p10, p50, p90 = np.quantile(samples_per_second_S, [0.1, 0.5, 0.9]).tolist()
        return cls(p10, p50, p90, source)


def duration(recipe: Recipe, train_rows: int, rate: Rate | None) -> Finding:
    """The whole run's time at that rate, without evaluation and checkpoints."""
    if rate is None:
        return Finding("duration", "note", "unknown until the first steps are done", "sidrec doctor RECIPE --measure")
    rows = recipe.train.epochs * train_rows
    usual, fast, slow = (timedelta(seconds=round(rows / speed)) for speed in (rate.p50, rate.p90, rate.p10))
    speeds = f"{rate.p50:,.0f} samples/s (p10 {rate.p10:,.0f}, p90 {rate.p90:,.0f})"
    found = f"about {usual} ({fast} to {slow}) for {rows:,} rows at {speeds}, {rate.source}; evaluation comes on top"
    return Finding("duration", "ok", found)


def logged_rate(recipe: Recipe, world: int) -> Rate | None:
    """The rate of the latest run of the recipe's name that logged enough; None without one.

    A run of other conditions says which: ranks, batch size, threads.
    """
    logs = (recipe.train.runs / recipe.name).glob("seed*/metrics.jsonl")
    for log in sorted(logs, key=lambda path: path.stat().st_mtime, reverse=True):
        speeds = _speeds(log)[1:]
        if len(speeds) >= LEAST:
            return Rate.of(speeds, f"as {log.parent} logged {_conditions(log.parent, recipe, world)}")
    return None


def _speeds(log: Path) -> list[float]:
    found = []
    for line in log.read_text().splitlines():
        speed = _object(line).get("samples_per_second")
        if isinstance(speed, (int, float)) and speed > 0:
            found.append(float(speed))
    return found


def _conditions(run: Path, recipe: Recipe, world: int) -> str:
    facts = _object((run / "run.json").read_text()) if (run / "run.json").is_file() else {}
    ranks, device, threads = (facts.get(name, "unknown") for name in ("ranks", "device", "threads_per_rank"))
    told = f"on {ranks} rank(s), {device}, {threads} thread(s) each"
    try:
        before: int | None = load_file(run / "config.yaml").data.batch_size
    except ConfigError:
        before = None
    told += f", batches of {before or 'unknown size'}"
    others = [f"{world} rank(s)"] if ranks != world else []
    others += [f"batches of {recipe.data.batch_size}"] if before != recipe.data.batch_size else []
    return f"{told}, while this is for {' and '.join(others)}" if others else told


def _object(text: str) -> dict[str, Any]:
    """What is no JSON object, as the line of a process that was killed, says nothing."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
