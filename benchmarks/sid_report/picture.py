"""Pictures of a report: a dot per learner and measure, and what its training did epoch by epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SHOWN = (
    "unexplained variance",
    "unexplained, additive decoder",
    "token entropy",
    "perplexity, least",
    "collision rate",
    "fit CPU s",
)
OFF_SCALE = {"unexplained variance": 1.5}  # a decoder far off would push all others together; its value is written
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe-Ito, told apart by everyone
STYLES = ("-", "--", ":")


def draw_measures(path: Path, title: str, summary: Mapping[str, Mapping[str, Any]]) -> None:
    """One panel per measure, one line per learner: the mean over seeds, and each seed pale. Summary: `RowSummary`."""
    figure = Figure(figsize=(2.6 * len(SHOWN), 1.4 + 0.32 * len(summary)), layout="constrained")
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    for axes, name in zip(panels, SHOWN, strict=True):
        edge = ("axes fraction", "data")
        for line, of in enumerate(summary.values()):
            spread = of["measures"][name]
            if spread is None:
                axes.annotate("-", (0.5, line), xycoords=edge, ha="center", va="center")
                continue
            if spread["mean"] > OFF_SCALE.get(name, np.inf):
                axes.annotate(f"{spread['mean']:.3g} →", (0.97, line), xycoords=edge, ha="right", va="center")
                continue
            axes.plot(spread["values"], [line] * len(spread["values"]), ".", color=COLOURS[0], alpha=0.4)
            axes.plot(spread["mean"], line, "o", color=COLOURS[0])
        axes.set_title(name, fontsize="medium")
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(summary)), [of["label"] for of in summary.values()])
    panels[0].set_ylim(len(summary) - 0.5, -0.5)
    figure.suptitle(f"{title}: mean over seeds; pale: single seeds", fontsize="medium")
    save_figure(figure, path)


def draw_curves(path: Path, title: str, curves: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Reconstruction's term, relative to the first epoch as scales differ, and mean perplexity, by epoch.

    curves: learner -> name -> values; learners without epochs have none.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (label, of) in enumerate((label, of) for label, of in curves.items() if of):
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number // len(COLOURS) % len(STYLES)]}
        epochs = range(1, len(of["loss"]) + 1)
        left.plot(epochs, [value / of["reconstruction"][0] for value in of["reconstruction"]], label=label, **style)
        right.plot(epochs, of["perplexity"], label=label, **style)
    left.set_title("reconstruction's term, first epoch = 1", fontsize="medium")
    right.set_title("perplexity in training, mean over levels", fontsize="medium")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG in one step, the same bytes from the same figures."""
    FigureCanvasAgg(figure)
    partial = path.with_suffix(".partial")
    figure.savefig(partial, dpi=110, format="png", metadata={"Software": None})
    partial.replace(path)
