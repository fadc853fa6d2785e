"""What the gate of SID-Coord does: its mean by exposure, on items never shown, as a file, a picture and lines.

The mean by exposure decile is figure 3 of the SID-Coord paper (arXiv 2604.10471). Shapes: N rows of a split.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sidrec.io.files import write_json
from sidrec.metrics.predictions import Predictions
from sidrec.train.warnings_of_metrics import SATURATED, gate_warnings

EXPOSURES = "stat_exposures"
GATE = "gate"
DECILES = 10


def gate_by_decile(exposures_N: NDArray[np.float32], gate_N: NDArray[np.float32]) -> dict[str, list[float]]:
    """Mean gate per decile of the rows' exposure counts, lowest first.

    Equal counts stay together, so fewer than ten groups can come out. Each list has one entry per group:
    exposures (median), gate (mean), half_interval (95% of the mean), lowest_tenth and highest_tenth (10% and 90%
    quantiles of the rows' gates), rows.
    """
    edges = np.unique(np.quantile(exposures_N, np.linspace(0, 1, DECILES + 1)[1:-1]))
    group_N = np.searchsorted(edges, exposures_N, side="right")
    groups = [np.flatnonzero(group_N == group) for group in np.unique(group_N)]
    return {
        "exposures": [float(np.median(exposures_N[rows])) for rows in groups],
        "gate": [float(gate_N[rows].mean()) for rows in groups],
        "half_interval": [float(1.96 * gate_N[rows].std() / np.sqrt(len(rows))) for rows in groups],
        "lowest_tenth": [float(np.quantile(gate_N[rows], 0.1)) for rows in groups],
        "highest_tenth": [float(np.quantile(gate_N[rows], 0.9)) for rows in groups],
        "rows": [float(len(rows)) for rows in groups],
    }


def gate_report(folder: Path, split: str, predictions: Predictions) -> list[str]:
    """Writes gate_<split>.json and .png into a folder. Returns lines for the log; none without a gate or exposures."""
    extra = predictions.extra
    if GATE not in extra or EXPOSURES not in extra or not len(extra[GATE]):
        return []
    gated = gated_rows(extra)
    exposures_N, gate_N = gated[EXPOSURES], gated[GATE]
    if not len(gate_N):
        return [f"gate on {split}: none of its rows' items has a SID"]
    deciles = gate_by_decile(exposures_N, gate_N)
    rank = rank_correlation(deciles["gate"])
    never = _never_shown(exposures_N, gate_N)
    warnings = gate_warnings(split, deciles["gate"], rank, float(gate_N.mean()))
    saturated = float((np.minimum(gate_N, 1 - gate_N) < SATURATED).mean())
    whole = {"mean": float(gate_N.mean()), "saturated": saturated, "never_shown": never}
    write_json(folder / f"gate_{split}.json", {"spearman_of_deciles": rank, **deciles, **whole})
    picture = folder / f"gate_{split}.png"
    _draw(deciles, never, [f"{folder}, split {split}", _title(rank), *map(_short, warnings)], str(picture))
    least, most = deciles["gate"][0], deciles["gate"][-1]
    by_exposure = (
        f"gate by exposure decile on {split}: Spearman {rank_text(rank)}, "
        f"from {least:.3f} (least exposed) to {most:.3f} (most); {picture}"
    )
    lines = [by_exposure]
    if without := len(extra[GATE]) - len(gate_N):
        lines.append(f"gate on {split}: {without:,} rows are left out, as their items have no SID to mix")
    if never:
        lines.append(f"gate on {split} items never shown before: {never['gate']:.3f}, {never['rows']:,} rows")
    return lines + warnings


def gated_rows(extra: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
    """The extra columns of the rows whose item has a SID: the gate of others is NaN. All rows without a gate."""
    if GATE not in extra:
        return extra
    with_sid_N = ~np.isnan(extra[GATE])
    return {name: values_N[with_sid_N] for name, values_N in extra.items()}


def _never_shown(exposures_N: NDArray[np.float32], gate_N: NDArray[np.float32]) -> dict[str, float] | None:
    """gate (mean), lowest_tenth, highest_tenth, rows: of the items that had no exposure yet. None without any."""
    never_N = gate_N[exposures_N == 0]
    if not len(never_N):
        return None
    low, high = (float(np.quantile(never_N, share)) for share in (0.1, 0.9))
    return {"gate": float(never_N.mean()), "lowest_tenth": low, "highest_tenth": high, "rows": len(never_N)}


def rank_correlation(gate: Sequence[float]) -> float | None:
    """Spearman correlation of the gate with the decile's number; None for a constant gate, which has no order."""
    if len(set(gate)) < 2:
        return None
    rank_D = pd.Series(gate).rank()  # ties share their mean rank; SciPy's module of statistics takes 60 MB
    return float(np.corrcoef(np.arange(len(gate)), rank_D)[0, 1])


def rank_text(rank: float | None) -> str:
    """The correlation as text."""
    return "undefined (constant gate)" if rank is None else f"{rank:.2f}"


def _title(rank: float | None) -> str:
    return f"Spearman over deciles {rank_text(rank)}; bars: 95% of the mean; band: 10% to 90% of the rows"


def _short(warning: str) -> str:
    """A warning without its details, as a line of a title."""
    return warning.partition("; ")[0].partition(": it ")[0]


def _draw(deciles: dict[str, list[float]], never: dict[str, float] | None, title: list[str], path: str) -> None:
    """never: drawn apart, left of the deciles. title: its lines."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(deciles["gate"]))
    gate = np.asarray(deciles["gate"])
    labels = [f"{value:,.0f}" for value in deciles["exposures"]]
    axes.fill_between(positions, deciles["lowest_tenth"], deciles["highest_tenth"], color="#0072b2", alpha=0.15, lw=0)
    axes.errorbar(positions, gate, yerr=deciles["half_interval"], fmt="o-", color="#0072b2", capsize=3, clip_on=False)
    if never:
        spread = [[never["gate"] - never["lowest_tenth"]], [never["highest_tenth"] - never["gate"]]]
        spread = np.maximum(spread, 0).tolist()  # the mean may lie outside the quantiles
        axes.errorbar([-1.5], [never["gate"]], yerr=spread, fmt="s", color="#d55e00", capsize=3, clip_on=False)
        axes.axvline(-0.75, color="0.7", lw=0.8)
        positions, labels = np.append(-1.5, positions), ["never\nshown", *labels]
    axes.set_xticks(positions, labels)
    axes.set_xlabel("median exposures of the target so far, by decile of rows")
    axes.set_ylabel("mean gate g (1: HID, 0: SID)")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.set_title("\n".join(title), fontsize=8)
    figure.savefig(path, dpi=120)
