"""What behaviour vectors are like: does their length follow the items' frequency, as ADC-SID's controller needs it?

M items of the train split, D width, G groups of like frequency.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

GROUPS = 12


def norm_and_frequency(vectors_MD: np.ndarray, frequency_M: np.ndarray) -> dict[str, object]:
    """Spearman and Pearson correlation of |vector| with the number of train positives (ADC-SID, arXiv 2510.25622v3).

    Over the items that the train split has. A correlation is None where norms or frequencies are all equal.
    """
    norm_M = np.linalg.norm(vectors_MD, axis=1)
    ranks = (pd.Series(values).rank().to_numpy() for values in (norm_M, frequency_M))
    return {
        "items": len(norm_M),
        "spearman": _correlation(*ranks),
        "pearson": _correlation(norm_M, frequency_M),
        "norm_quartiles": np.quantile(norm_M, [0, 0.25, 0.5, 0.75, 1]).tolist(),
        "frequency_quartiles": np.quantile(frequency_M, [0, 0.25, 0.5, 0.75, 1]).tolist(),
    }


def _correlation(x_M: np.ndarray, y_M: np.ndarray) -> float | None:
    if np.ptp(x_M) == 0 or np.ptp(y_M) == 0:
        return None
    return float(np.corrcoef(x_M, y_M)[0, 1])


def median_norms(norm_M: np.ndarray, frequency_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean frequency and median norm [G] of at most GROUPS groups, by bounds evenly spaced in log frequency."""
    bounds = np.geomspace(frequency_M.min(), frequency_M.max() + 1, GROUPS + 1)
    group_M = np.searchsorted(bounds, frequency_M, side="right")
    groups = np.unique(group_M)
    frequency_G = [frequency_M[group_M == group].mean() for group in groups]
    return np.array(frequency_G), np.array([np.median(norm_M[group_M == group]) for group in groups])


def draw_norms(path: Path, vectors_MD: np.ndarray, frequency_M: np.ndarray, title: str) -> None:
    """A point per item, norm against frequency on a log axis, and the median by frequency. PNG."""
    norm_M = np.linalg.norm(vectors_MD, axis=1)
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(frequency_M, norm_M, s=5, color="#56B4E9", alpha=0.4, linewidths=0, label="items", rasterized=True)
    axes.plot(*median_norms(norm_M, frequency_M), "o-", color="#0072B2", label="median of items of like frequency")
    axes.set_xscale("log")
    axes.set_xlabel("positives of the item in the train split")
    axes.set_ylabel("length of its behaviour vector")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.set_title(title, loc="left", fontsize=10)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=120)
