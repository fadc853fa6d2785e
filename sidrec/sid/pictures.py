"""Pictures of a catalog: how evenly codes are used, and how many items share a SID."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sidrec.sid.catalog import Catalog
from sidrec.sid.quality import group_sizes

CODE_USAGE = "code_usage.png"
COLLISIONS = "collision_groups.png"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe-Ito, told apart by everyone
STYLES = ("-", "--", ":", "-.")
LARGEST_GROUP = 10  # larger groups share the last bar


def draw_pictures(catalog: Catalog, conditions: str, folder: Path) -> None:
    """Writes code_usage.png and collision_groups.png into `folder`, which is made.

    conditions: what was fitted on what, as the second line of the titles.
    """
    folder.mkdir()
    _save(_code_usage(catalog, conditions), folder / CODE_USAGE)
    _save(_collision_groups(catalog, conditions), folder / COLLISIONS)


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
