"""A study's tables and pictures, made from recorded results alone.

`report` writes summary.json, report.md and DATASET.png.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from sidrec.io.files import replaced_file, write_json, write_text
from sidrec.study.comparison import DatasetComparison, PairedDifference, comparison, place
from sidrec.study.definition import Column, Study
from sidrec.study.draws import RESAMPLES
from sidrec.study.intervals import LEVEL, Difference
from sidrec.study.jobs import study_runs
from sidrec.study.results import GATES, RunResult, finished

if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLORS = ("#1f77b4", "#d95f02", "#6a3d9a", "#33a02c")


class Spread(TypedDict):
    """Mean and sample standard deviation over seeds (sd null for one seed), and each seed's value."""

    mean: float
    sd: float | None
    values: list[float]


class VariantSummary(TypedDict):
    """item_parameters: parameters of the HID and SID tables; None where the runs did not count them."""

    seeds: list[int]
    item_parameters: int | None
    cpu_seconds: float
    metrics: dict[str, Spread | None]
    differences: dict[str, dict[str, Difference | None]]


Summary = dict[str, dict[str, VariantSummary]]  # data set -> variant


def report(study: Study, results: Path) -> str:
    """Writes summary.json, report.md and DATASET.png into RESULTS/STUDY. Returns the text of report.md."""
    folder = results / study.name
    found, compared = finished(results, study, study_runs(study)), comparison(study, results)
    summary: Summary = {}
    sections = [f"# {study.name}"]
    for dataset, variants in found.items():
        summary[dataset] = {
            name: summarize(runs, study.split, study.columns, compared.datasets[dataset])
            for name, runs in variants.items()
        }
        sections.append(_section(study, dataset, variants, summary[dataset]))
        if any(_compared(summary[dataset], reference) for reference in study.references):
            draw_differences(folder / f"{dataset}.png", dataset, study.references, summary[dataset])
    text = "\n\n".join(sections if found else [*sections, "No run has finished."]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", summary)
    write_text(folder / "report.md", text)
    return text


def _section(
    study: Study,
    dataset: str,
    variants: Mapping[str, Sequence[RunResult]],
    summary: Mapping[str, VariantSummary],
) -> str:
    parts = [f"## {dataset}", conditions_text(study, variants), "Mean ± standard deviation over seeds:"]
    parts.append(_metrics_table(study.columns, summary))
    parts += [
        _difference_table(study.columns, reference, summary)
        for reference in study.references
        if _compared(summary, reference)
    ]
    if gates := gate_table(study.split, variants):
        parts.append(gates)
    if any(_compared(summary, reference) for reference in study.references):
        parts.append(f"![Differences on {dataset}]({dataset}.png)")
    return "\n\n".join(parts)


def _metrics_table(columns: Sequence[Column], summary: Mapping[str, VariantSummary]) -> str:
    counted = any(of["item_parameters"] is not None for of in summary.values())  # early results lack the count
    rows = [
        [
            name,
            len(of["seeds"]),
            *(spread_text(of["metrics"][column]) for column in columns),
            *([f"{of['item_parameters'] or 0:,}"] if counted else []),
            of["cpu_seconds"],
        ]
        for name, of in summary.items()
    ]
    return markdown_table(["variant", "seeds", *columns, *(["item parameters"] if counted else []), "CPU s"], rows)


def gate_table(split: str, variants: Mapping[str, Sequence[RunResult]]) -> str:
    """Whether the gates of a variant's seeds agree in how they follow exposure; empty without variants with gates.

    Runs that were recorded by earlier versions have no such fact.
    """
    rows = []
    for name, runs in variants.items():
        by_split: list[Any] = [run["facts"].get(GATES, {}) for run in runs]
        ranks = [found[split] for found in by_split if split in found]
        if ranks:
            rows.append([name, ", ".join("-" if rank is None else f"{rank:+.2f}" for rank in ranks), _agreement(ranks)])
    if not rows:
        return ""
    return (
        "Gate by exposure: Spearman correlation of its mean with the exposure decile, by seed (+1: trusts HIDs more "
        f"the more their items were shown):\n\n{markdown_table(['variant', 'by seed', 'seeds agree'], rows)}"
    )


def _agreement(ranks: Sequence[float | None]) -> str:
    directions = {0 if rank is None else int(np.sign(rank)) for rank in ranks}
    if len(ranks) < 2:
        return "one seed"
    if directions >= {-1, 1}:
        return "no: UNSTABLE, its direction differs by seed"
    if 0 in directions:
        return "no: constant for some seeds" if len(directions) > 1 else "yes: constant"
    return "yes: rises" if directions == {1} else "yes: falls"


def _compared(summary: Mapping[str, VariantSummary], reference: str) -> bool:
    return any(reference in of["differences"] for of in summary.values())


def _difference_table(columns: Sequence[Column], reference: str, summary: Mapping[str, VariantSummary]) -> str:
    rows = [
        [name, *(difference_text(of["differences"][reference][column]) for column in columns)]
        for name, of in summary.items()
        if reference in of["differences"]
    ]
    return (
        f"Difference to {reference}: mean over the runs of both, {LEVEL:.0%} interval (the wider of a hierarchical "
        f"bootstrap over runs and users and the t interval over runs):\n\n{markdown_table(['variant', *columns], rows)}"
    )


def conditions_text(study: Study, variants: Mapping[str, Sequence[RunResult]]) -> str:
    """Rows, users, seeds, commits and hardware of a data set's runs."""
    runs = [run for of_variant in variants.values() for run in of_variant]
    metrics = runs[0]["metrics"][study.split]
    counts = ", ".join(f"{items} {metrics[items]['rows']:,}" for items in metrics)
    everything = metrics["all"]
    return (
        f"Recipe `{study.datasets[runs[0]['dataset']]}`, split {study.split}. Rows: {counts}. "
        f"GAUC is over {everything['covered_users']:,} of {everything['users']:,} users, "
        f"those with both classes, and their {everything['covered_rows']:,} rows. "
        f"{study.ranks} ranks; cores {_distinct(runs, 'cores')}; CPU {_distinct(runs, 'cpu')}; "
        f"commit {_distinct(runs, 'commit')}."
    )


def _distinct(runs: Sequence[RunResult], key: str) -> str:
    return ", ".join(dict.fromkeys(str(run["conditions"][key]) for run in runs))


def spread_text(of: Spread | None) -> str:
    if of is None:
        return "-"
    return f"{of['mean']:.4f}" if of["sd"] is None else f"{of['mean']:.4f} ± {of['sd']:.4f}"


def difference_text(of: Difference | None) -> str:
    return "-" if of is None else f"{of['difference']:+.4f} [{of['low']:+.4f}, {of['high']:+.4f}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def summarize(
    runs: Sequence[RunResult], split: str, columns: Sequence[Column], compared: DatasetComparison | None
) -> VariantSummary:
    """One variant's columns over its seeds, and its differences to the references."""
    variant = runs[0]["variant"]
    against = compared.variants[variant].against if compared else {}
    places = {column: place(column) for column in columns}
    return VariantSummary(
        seeds=[run["run"] for run in runs],
        item_parameters=_item_parameters(runs),
        cpu_seconds=round(float(np.mean([run["cpu_seconds"] for run in runs])), 1),
        metrics={
            column: spread([run["metrics"][split].get(items, {}).get(metric) for run in runs])
            for column, (items, metric) in places.items()
        },
        differences={
            reference: {column: _with_interval(of) for column, of in differences.items()}
            for reference, differences in against.items()
        },
    )


def _with_interval(of: PairedDifference | None) -> Difference | None:
    if of is None or of.interval is None:
        return None
    ends = of.interval
    return Difference(difference=of.difference, low=ends.low, high=ends.high, resamples=RESAMPLES)


def _item_parameters(runs: Sequence[RunResult]) -> int | None:
    parameters = runs[0]["facts"].get("parameters")
    return int(parameters["item_parameters"]) if isinstance(parameters, dict) else None


def spread(values: Sequence[float | int | None]) -> Spread | None:
    """None when a seed left the metric undefined."""
    known = [float(value) for value in values if value is not None]
    if len(known) < len(values):
        return None
    return Spread(mean=float(np.mean(known)), sd=float(np.std(known, ddof=1)) if len(known) > 1 else None, values=known)


def draw_differences(
    path: Path, dataset: str, references: Sequence[str], summary: Mapping[str, VariantSummary]
) -> None:
    """One panel per metric, one line per variant: the difference with its interval, in a colour per reference.

    Pale dots: each seed's difference to the same seed of the reference.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

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
    title = f"{dataset}: mean over seeds, {LEVEL:.0%} interval over runs and users; pale: single seeds"
    figure.suptitle(title, fontsize="medium")
    with replaced_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png", metadata={"Software": None})
    plt.close(figure)


def _draw_reference(
    axis: "Axes", title: str, reference: str, color: str, shift: float, summary: Mapping[str, VariantSummary]
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
