"""Dot-and-interval picture of a study: how far each variant is from its reference, per metric."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from benchmarks.study.differences import LEVEL
from benchmarks.study.summary import VariantSummary

COLORS = ("#1f77b4", "#d95f02", "#6a3d9a", "#33a02c")


def draw_differences(
    path: Path, dataset: str, references: Sequence[str], summary: Mapping[str, VariantSummary]
) -> None:
    """One panel per metric, one line per variant: the difference with its interval, in a colour per reference.

    Pale dots: each seed's difference to the same seed of the reference.
    """
    titles = list(next(iter(summary.values()))["metrics"])
    names = list(summary)
    height = 1.3 + 0.5 * len(names)
    figure, axes = plt.subplots(1, len(titles), figsize=(3.4 * len(titles), height), sharey=True, layout="constrained")
    for axis, title in zip(axes, titles, strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        for index, reference in enumerate(name for name in references if name in summary):
            shift = 0.15 * (2 * index - len(references) + 1)
            _draw_reference(axis, title, reference, COLORS[index % len(COLORS)], shift, summary)
        if not axis.containers:
            axis.text(0.5, 0.5, "undefined", transform=axis.transAxes, ha="center")
        axis.set_title(title)
        axis.grid(axis="x", alpha=0.3)
        axis.xaxis.set_major_locator(MaxNLocator(5))  # more labels would run into each other
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="difference to", loc="outside right upper", fontsize="small")
    title = f"{dataset}: mean over seeds, {LEVEL:.0%} paired bootstrap over users; pale: single seeds"
    figure.suptitle(title, fontsize="medium")
    partial = path.with_suffix(".partial")
    figure.savefig(partial, dpi=120, format="png", metadata={"Software": None})
    plt.close(figure)
    partial.replace(path)


def _draw_reference(
    axis: Axes, title: str, reference: str, color: str, shift: float, summary: Mapping[str, VariantSummary]
) -> None:
    base = summary[reference]
    label: str | None = reference
    for line, of in enumerate(summary.values()):
        difference = of["differences"].get(reference, {}).get(title)
        if difference is None:
            continue
        mean, y = difference["difference"], line + shift
        interval = [[mean - difference["low"]], [difference["high"] - mean]]
        axis.errorbar([mean], [y], xerr=interval, fmt="o", color=color, capsize=3, label=label)
        label = None
        ours, theirs = of["metrics"][title], base["metrics"][title]
        if ours and theirs and of["seeds"] == base["seeds"]:
            single = [a - b for a, b in zip(ours["values"], theirs["values"], strict=True)]
            axis.plot(single, [y] * len(single), ".", color=color, alpha=0.35, markersize=4)
