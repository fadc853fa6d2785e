"""Pictures of a catalog: how evenly codes are used, how many items share a SID, and how its learner trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sidrec.sid.catalog import CODE_USAGE, COLLISIONS, TRAINING, Catalog
from sidrec.sid.quality import group_sizes

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe-Ito, safe for colour-blind readers
STYLES = ("-", "--", ":", "-.")
NO_TERMS = ("epoch", "revived_codes")
DECADES = 6  # of the loss and its terms; smaller values are not shown
LARGEST_GROUP = 10  # the last bar counts this and all larger groups


def draw_pictures(catalog: Catalog, conditions: str, folder: Path) -> None:
    """Writes code_usage.png and collision_groups.png into `folder`, which must not exist yet.

    conditions: what was fitted on which data; the second line of the titles.
    """
    folder.mkdir()
    _save(_code_usage(catalog, conditions), folder / CODE_USAGE)
    _save(_collision_groups(catalog, conditions), folder / COLLISIONS)


def draw_training(journal: Sequence[Mapping[str, Any]], conditions: str, folder: Path) -> None:
    """Writes training.png into `folder`: terms of the loss, then utilisation and perplexity of every level.

    journal: of a tokenizer, one entry per epoch. Names with a slash are figures of controllers and losses, not terms.
    """
    _save(_training(journal, conditions), folder / TRAINING)


def _code_usage(catalog: Catalog, conditions: str) -> Figure:
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for level, (codes, size) in enumerate(zip(catalog.codes_NL.T, catalog.codebook_sizes, strict=True)):
        load = np.sort(np.bincount(codes, minlength=size))[::-1] / len(catalog)
        axes.plot(np.linspace(0, 1, size), load * size, **_line(level), label=f"level {level + 1}")
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
    axes.set_xlabel(f"items on the same SID (1: no collision; largest group: {sizes_G.max():,})")
    axes.set_ylabel("share of items")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title(f"Sizes of collision groups\n{conditions}", loc="left", fontsize=10)
    return figure


def _training(journal: Sequence[Mapping[str, Any]], conditions: str) -> Figure:
    figure = Figure(figsize=(9, 9), layout="constrained")
    losses, *shares = figure.subplots(3, sharex=True)
    epochs = [entry["epoch"] for entry in journal]
    scalars = [name for name, value in journal[0].items() if not isinstance(value, list)]
    terms = [name for name in scalars if "/" not in name and name not in NO_TERMS]
    _lines(losses, epochs, {name: [entry[name] for entry in journal] for name in terms})
    losses.set_yscale("log", nonpositive="mask")
    low, high = losses.get_ylim()
    losses.set_ylim(bottom=max(low, high / 10**DECADES))
    losses.set_ylabel("loss and its terms")
    for axes, name in zip(shares, ("utilisation", "perplexity"), strict=True):
        levels = range(len(journal[0][name]))
        _lines(axes, epochs, {f"level {level + 1}": [entry[name][level] for entry in journal] for level in levels})
        axes.set_ylabel(name)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    shares[0].yaxis.set_major_formatter(PercentFormatter(1))
    shares[0].set_ylim(0, 1.05)
    shares[-1].set_xlabel("epoch")
    shares[-1].set_xlim(0.5, epochs[-1] + 0.5)
    shares[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    losses.set_title(f"Training by epoch: loss, and use of the codes\n{conditions}", loc="left", fontsize=10)
    return figure


def _lines(axes: Axes, x: Sequence[int], lines: Mapping[str, Sequence[float]]) -> None:
    """One line per name, the legend right of the axes. A single epoch is drawn as a dot."""
    marker = "o" if len(x) == 1 else ""
    for number, (name, y) in enumerate(lines.items()):
        axes.plot(x, y, **_line(number), marker=marker, label=name)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _line(number: int) -> dict[str, Any]:
    """Colour and style of a line, different for every number up to 12."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)
