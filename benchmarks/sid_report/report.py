"""The report's tables, rebuilt from its JSONs alone: summary.json, report.md and two pictures per setting."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.sid_report.fits import FitResult, SidStudy, finished, study_fits
from benchmarks.tables import Spread, markdown_table, spread
from sidrec.io.files import write_json, write_text

Measure = Callable[[FitResult], float | None]
CODES: dict[str, tuple[Measure, str]] = {
    "token entropy": (lambda fit: fit["codes"]["mean_token_entropy_nats"], ".3f"),
    "SID entropy": (lambda fit: fit["codes"]["sid_entropy_nats"], ".3f"),
    "utilisation": (lambda fit: float(np.mean(fit["codes"]["utilisation"])), ".3f"),
    "perplexity, mean": (lambda fit: fit["codes"]["mean_perplexity"], ".1f"),
    "perplexity, least": (lambda fit: fit["codes"]["min_perplexity"], ".1f"),
    "collision rate": (lambda fit: fit["codes"]["collision_rate"], ".4f"),
    "collided items": (lambda fit: fit["codes"]["collided_item_rate"], ".4f"),
}
RECONSTRUCTION: dict[str, tuple[Measure, str]] = {
    "squared error": (lambda fit: fit["own"]["squared_error"] if fit["own"] else None, ".4f"),
    "unexplained variance": (
        lambda fit: fit["own"]["unexplained_variance"] if fit["own"] else None,
        ".4f",
    ),
    "unexplained, additive decoder": (lambda fit: fit["additive"]["unexplained_variance"], ".4f"),
}
COST: dict[str, tuple[Measure, str]] = {
    "fit CPU s": (lambda fit: fit["fit_cpu_seconds"], ".1f"),
    "fit wall s": (lambda fit: fit["fit_wall_seconds"], ".1f"),
    "encoded items per CPU s": (lambda fit: fit["encode_items_per_cpu_second"], ",.0f"),
}
CONDITIONS = ("cpu", "cores", "commit")
MEASURES = CODES | RECONSTRUCTION | COST
LEGEND = """Entropies in nats. Token entropy: mean over levels; per level beside it. SID entropy: of whole SIDs.
Utilisation: share of codes in use, mean over levels. Perplexity: exp of a level's entropy. Collision rate:
(items - unique SIDs) / items. Collided items: share of items whose SID another item has.

Squared error: of the text vectors, which have unit length, summed over dimensions, mean over items, through the
learner's own decoder, which sees codes and, where there are any, token weights. Unexplained variance: that, divided by
the mean squared distance from the mean vector; 1 is no better than the mean. "-": they stand for no vector (random
codes; ADC-SID with several experts per content column, whose gates follow from the vectors). Additive decoder: the
same ratio for the best sum of one vector per code, by least squares on these items, the same for every row; random
codes show how much of it is chance."""


class RowSummary(TypedDict):
    """token_entropy_nats: per level, mean over seeds."""

    label: str
    reconstructs: str
    seeds: list[int]
    token_entropy_nats: list[float]
    measures: dict[str, Spread | None]


def report(study: SidStudy, results: Path) -> str:
    """Writes everything into RESULTS/STUDY. Returns the text of report.md."""
    folder = results / study.name
    found = finished(results, study, study_fits(study))
    summary: dict[str, dict[str, RowSummary]] = {}
    sections = [f"# {study.name}", LEGEND]
    for setting, rows in found.items():
        summary[setting] = {row: summarize(study, of_row) for row, of_row in rows.items()}
        draw_measures(folder / f"{setting}.png", f"{study.dataset}, {setting}", summary[setting])
        draw_curves(
            folder / f"{setting}-curves.png",
            f"{study.dataset}, {setting}, seed {study.seeds[0]}",
            {study.rows[row].label: of_row[0]["curves"] for row, of_row in rows.items()},
        )
        sections.append(_section(study, setting, summary[setting], rows))
    text = "\n\n".join(sections if found else [*sections, "No fit has finished."]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", summary)
    write_text(folder / "report.md", text)
    return text


def summarize(study: SidStudy, fits: Sequence[FitResult]) -> RowSummary:
    row = study.rows[fits[0]["row"]]
    entropies = np.mean([fit["codes"]["token_entropy_nats"] for fit in fits], axis=0)
    return RowSummary(
        label=row.label,
        reconstructs=row.reconstructs,
        seeds=[fit["seed"] for fit in fits],
        token_entropy_nats=[float(entropy) for entropy in entropies],
        measures={name: spread([measure(fit) for fit in fits]) for name, (measure, _) in MEASURES.items()},
    )


def _section(
    study: SidStudy,
    setting: str,
    summary: Mapping[str, RowSummary],
    rows: Mapping[str, Sequence[FitResult]],
) -> str:
    codes = [
        [of["label"], len(of["seeds"]), " ".join(f"{entropy:.2f}" for entropy in of["token_entropy_nats"])]
        + [spread_text(of["measures"][name], style) for name, (_, style) in CODES.items()]
        for of in summary.values()
    ]
    others = [
        [of["label"], of["reconstructs"]]
        + [spread_text(of["measures"][name], style) for name, (_, style) in (RECONSTRUCTION | COST).items()]
        for of in summary.values()
    ]
    return "\n\n".join(
        [
            f"## {setting}",
            conditions_text(study, [fit for of_row in rows.values() for fit in of_row]),
            markdown_table(["learner", "seeds", "entropy per level", *CODES], codes),
            markdown_table(["learner", "trained to reconstruct", *RECONSTRUCTION, *COST], others),
            f"![Measures of {setting}]({setting}.png)",
            f"![Curves of {setting}]({setting}-curves.png)",
        ]
    )


def conditions_text(study: SidStudy, fits: Sequence[FitResult]) -> str:
    """Items, training, commits and hardware of a setting's fits."""
    trainings = [str(fit["tokenizer"]["learner"].get("training", {})) for fit in fits]
    trained = [training for training in dict.fromkeys(trainings) if training != "{}"]
    distinct = {key: ", ".join(dict.fromkeys(str(fit["conditions"][key]) for fit in fits)) for key in CONDITIONS}
    return (
        f"{fits[0]['codes']['items']:,} items of `{study.data}`. Mean ± standard deviation over seeds, one thread. "
        f"Trainings by gradients: {'; '.join(trained) or 'none'}. "
        f"CPU {distinct['cpu']}, {distinct['cores']} cores shared with other work, so wall time is no measure of "
        f"speed; commit {distinct['commit']}."
    )


def spread_text(of: Spread | None, style: str) -> str:
    """`style` is a format specification, such as .3f."""
    if of is None:
        return "-"
    return f"{of['mean']:{style}}" + ("" if of["sd"] is None else f" ± {of['sd']:{style}}")


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
