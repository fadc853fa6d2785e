"""The report's tables, rebuilt from its JSONs alone: summary.json, report.md and two pictures per setting."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from benchmarks.sid_report.definition import SidStudy, study_fits
from benchmarks.sid_report.picture import draw_curves, draw_measures
from benchmarks.sid_report.result import FitResult, finished
from benchmarks.study.report import markdown_table
from benchmarks.study.summary import Spread, spread
from sidrec.train.run_directory import write_json, write_text

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
    found = finished(results, study_fits(study))
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
