"""What an evaluation's own figures say against it: a protocol that gives labels away, a gate that does nothing.

Shapes: N rows of a split.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sidrec.metrics.exact import SliceMetrics
from sidrec.schema import RANDOM, Manifest

LEAST_ROWS = 100  # of a part of the rows, for a warning about it
ODDS = 3.0
"""Odds of a positive in a part of the rows, against those of all rows, beyond which the part gives labels away.

Some difference is natural: items that nobody took are worse ones.
"""
CONSTANT = 0.01
"""Range of the mean gate over exposure deciles below which the gate is constant."""
SATURATED = 0.02
"""Distance from 0 or 1 of the mean gate of all rows within which it is saturated."""


def protocol_warnings(
    split: str, measured: SliceMetrics, label_N: NDArray[np.float32], statistics: Mapping[str, NDArray[np.float32]]
) -> list[str]:
    """Lines about parts of a split whose rate of positives is far from that of all rows.

    Such a part tells labels without a model, for example where negatives are drawn uniformly from all items: every
    model that sees exposures then gains AUC. statistics: `stat_*` columns as of each row's time; the parts are rows on
    items never shown before, on items that someone took before, and on cold items.
    """
    if not len(label_N):
        return []
    parts = {}
    if cold := measured.get("cold"):
        parts["on cold items"] = (int(cold["rows"] or 0), int(cold["positives"] or 0))
    for column, what in (("stat_exposures", "shown"), ("stat_clicks", "taken")):
        if column in statistics:
            inside_N = statistics[column] == 0
            parts[f"on items never {what} before"] = (int(inside_N.sum()), int(label_N[inside_N].sum()))
    overall = float(label_N.mean())
    lines = []
    for what, (rows, positives) in parts.items():
        if rows < LEAST_ROWS or rows == len(label_N):
            continue
        if abs(_log_odds(positives, rows) - _log_odds(overall * len(label_N), len(label_N))) > math.log(ODDS):
            rates = f"{positives / rows:.1%} of {rows:,} rows {what} are positive, {overall:.1%} of all"
            lines.append(f"warning: split {split}: {rates}; metrics reward a model for knowing which rows these are")
    return lines


def split_warnings(log: Manifest) -> list[str]:
    """A line about a log whose splits were drawn at random."""
    split = log.protocol.get("split")
    if not isinstance(split, Mapping) or split.get("kind") != RANDOM:
        return []
    timed = "; the log has no times, so no row has a history or statistics" if split.get("timed") is False else ""
    return [f"warning: rows were split at random: metrics tell nothing of later days{timed}"]


def _log_odds(positives: float, rows: int) -> float:
    return math.log((positives + 0.5) / (rows - positives + 0.5))


def gate_warnings(split: str, gate: Sequence[float], rank: float | None, mean: float) -> list[str]:
    """Lines about a gate that is constant, saturated, or falls with exposure.

    gate: mean per exposure decile, least exposed first. rank: its Spearman correlation. mean: over all rows.
    """
    lines = []
    spread = max(gate) - min(gate)
    if min(mean, 1 - mean) < SATURATED:
        side = "SIDs" if mean > 0.5 else "HIDs"
        lines.append(f"warning: split {split}: the gate is saturated at {mean:.3f}; {side} hardly reach the ranker")
    elif spread < CONSTANT:
        lines.append(f"warning: split {split}: the gate is constant, {min(gate):.3f} to {max(gate):.3f} over deciles")
    elif rank is not None and rank < 0:
        words = "trusts HIDs less the more their items were shown; look at other seeds before reading anything into it"
        lines.append(f"warning: split {split}: the gate falls with exposure (Spearman {rank:.2f}): it {words}")
    return lines
