"""Picture of several catalogs: item-level recall and NDCG at 10, the best first, popularity as a line."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.generative.entries import Entry
from benchmarks.sid_report.report import COLOURS, save_figure

SHOWN = {"recall@10": "Recall@10", "ndcg@10": "NDCG@10"}


def draw_catalogs(path: Path, title: str, entries: Sequence[Entry]) -> None:
    """One panel per metric, one line per catalog, in the order given: the mean over seeds, and each seed pale."""
    popularity = entries[0].results[0]["metrics"]["popularity_item"]
    figure = Figure(figsize=(9, 1.5 + 0.32 * len(entries)), layout="constrained")
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    for axes, (metric, name) in zip(panels, SHOWN.items(), strict=True):
        for line, entry in enumerate(entries):
            of = entry.metric("item", metric)
            axes.barh(line, of["mean"], height=0.6, color=COLOURS[0], alpha=0.3)
            axes.plot(of["values"], [line] * len(of["values"]), ".", color=COLOURS[0], alpha=0.5)
            axes.plot(of["mean"], line, "o", color=COLOURS[0])
        axes.axvline(popularity[metric], color=COLOURS[4], linestyle="--")
        axes.set_title(f"item-level {name}; dashed: popularity, {popularity[metric]:.4f}", fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(5))  # more labels would run into each other
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(entries)), [entry.label for entry in entries])
    panels[0].set_ylim(len(entries) - 0.5, -0.5)
    figure.suptitle(f"{title}: mean over seeds; pale: single seeds", fontsize="medium")
    save_figure(figure, path)
