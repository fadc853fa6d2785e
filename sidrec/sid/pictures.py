"""Pictures of a catalog: how evenly codes are used, how many items share a SID, and how its learner trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sidrec.sid.catalog import CODE_USAGE, COLLISIONS, TRAINING, Catalog
from sidrec.sid.quality import group_sizes

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe-Ito, told apart by everyone
STYLES = ("-", "--", ":", "-.")
NO_TERMS = ("epoch", "revived_codes")
LARGEST_GROUP = 10  # larger groups share the last bar


def draw_pictures(catalog: Catalog, conditions: str, folder: Path) -> None:
    """Writes code_usage.png and collision_groups.png into `folder`, which is made.

    conditions: what was fitted on what, as the second line of the titles.
    """
    folder.mkdir()
    _save(_code_usage(catalog, conditions), folder / CODE_USAGE)
    _save(_collision_groups(catalog, conditions), folder / COLLISIONS)


def draw_training(journal: Sequence[Mapping[str, Any]], conditions: str, folder: Path) -> None:
    """Writes training.png into `folder`: the terms of the loss, and utilisation and perplexity of every level.

    journal: of a tokenizer, one entry per epoch; whatever has a slash in its name is no term of the loss.
    """
    _save(_training(journal, conditions), folder / TRAINING)


def _training(journal: Sequence[Mapping[str, Any]], conditions: str) -> Figure:
    figure = Figure(figsize=(7.5, 9), layout="constrained")
    losses, *shares = figure.subplots(3, sharex=True)
    epochs = [entry["epoch"] for entry in journal]
    scalars = [name for name, value in journal[0].items() if not isinstance(value, list)]
    terms = [name for name in scalars if "/" not in name and name not in NO_TERMS]
    _lines(losses, epochs, {name: [entry[name] for entry in journal] for name in terms})
    losses.set_yscale("log")
    losses.set_ylabel("mean over the epoch's steps")
    for axes, name in zip(shares, ("utilisation", "perplexity"), strict=True):
        levels = range(len(journal[0][name]))
        _lines(axes, epochs, {f"level {level + 1}": [entry[name][level] for entry in journal] for level in levels})
        axes.set_ylabel(f"{name} of the epoch's batches")
        axes.set_ylim(bottom=0)
    shares[0].yaxis.set_major_formatter(PercentFormatter(1))
    shares[-1].set_xlabel("epoch")
    losses.set_title(f"Loss and its terms, use of the codebooks\n{conditions}", loc="left", fontsize=10)
    return figure


def _lines(axes: Axes, x: Sequence[int], lines: Mapping[str, Sequence[float]]) -> None:
    """A single epoch is a dot."""
    marker = "o" if len(x) == 1 else ""
    for number, (name, y) in enumerate(lines.items()):
        style, colour = STYLES[number // len(COLOURS) % len(STYLES)], COLOURS[number % len(COLOURS)]
        axes.plot(x, y, style, marker=marker, color=colour, label=name)
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _code_usage(catalog: Catalog, conditions: str) -> Figure:
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for level, (codes, size) in enumerate(zip(catalog.codes_NL.T, catalog.codebook_sizes, strict=True)):
        load = np.sort(np.bincount(codes, minlength=size))[::-1] / len(catalog)
        style, colour = STYLES[level % len(STYLES)], COLOURS[level % len(COLOURS)]
        axes.plot(np.linspace(0, 1, size), load * size, style, color=colour, label=f"level {level + 1}")
    axes.axhline(1, color="0.45", linewidth=1)
    axes.annotate("even use", (1, 1), xytext=(-4, 3), textcoords="offset points", ha="right", color="0.35")
    axes.set_xlabel("codes of a level, most used first")
    axes.set_ylabel("items per code, relative to even use")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.set_title(f"Code usage per level\n{conditions}", loc="left", fontsize=10)
    return figure


def _collision_groups(catalog: Catalog, conditions: str) -> Figure:
    sizes_G = group_sizes(catalog.codes_NL, catalog.codebook_sizes)
    items = np.bincount(np.minimum(sizes_G, LARGEST_GROUP), weights=sizes_G, minlength=LARGEST_GROUP + 1)[1:]
    shares = items / len(catalog)
    labels = [str(size) for size in range(1, LARGEST_GROUP)] + [f"{LARGEST_GROUP}+"]
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(labels, shares, color=[COLOURS[0]] + [COLOURS[1]] * (LARGEST_GROUP - 1))
    axes.bar_label(bars, [f"{share:.1%}" if share else "" for share in shares], padding=2, fontsize=8)
    axes.set_xlabel(f"items on the same SID (1 = unique; largest group {sizes_G.max()})")
    axes.set_ylabel("share of items")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title(f"Collision group sizes\n{conditions}", loc="left", fontsize=10)
    return figure


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
