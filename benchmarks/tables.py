"""Tables of benchmarks' reports: means with deviations, differences with intervals, Markdown."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from sidrec.study.intervals import Difference


class Spread(TypedDict):
    """Mean and sample standard deviation over seeds (sd null for one seed), and each seed's value."""

    mean: float
    sd: float | None
    values: list[float]


def spread(values: Sequence[float | int | None]) -> Spread | None:
    """None when a seed left the metric undefined."""
    known = [float(value) for value in values if value is not None]
    if len(known) < len(values):
        return None
    return Spread(mean=float(np.mean(known)), sd=float(np.std(known, ddof=1)) if len(known) > 1 else None, values=known)


def spread_text(of: Spread | None) -> str:
    if of is None:
        return "-"
    return f"{of['mean']:.4f}" if of["sd"] is None else f"{of['mean']:.4f} ± {of['sd']:.4f}"


def difference_text(of: Difference | None) -> str:
    return "-" if of is None else f"{of['difference']:+.4f} [{of['low']:+.4f}, {of['high']:+.4f}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
