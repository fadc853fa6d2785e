"""A study's tables, rebuilt from its JSONs alone: summary.json, report.md and a picture per data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.study.bootstrap_file import Bootstrap, load_bootstrap
from benchmarks.study.definition import Column, Study
from benchmarks.study.differences import LEVEL, Difference
from benchmarks.study.picture import draw_differences
from benchmarks.study.runs import study_runs
from benchmarks.study.store import RunResult, finished
from benchmarks.study.summary import Spread, VariantSummary, summarize
from sidrec.train.run_directory import write_json, write_text

Summary = dict[str, dict[str, VariantSummary]]  # data set -> variant


def report(study: Study, results: Path) -> str:
    """Writes summary.json, report.md and DATASET.png into RESULTS/STUDY. Returns the text of report.md."""
    folder = results / study.name
    found = finished(results, study_runs(study))
    summary: Summary = {}
    sections = [f"# {study.name}"]
    for dataset, variants in found.items():
        bootstrap = load_bootstrap(study, folder / dataset, variants)
        summary[dataset] = {
            name: summarize(runs, study.split, study.columns, bootstrap) for name, runs in variants.items()
        }
        sections.append(_section(study, dataset, variants, summary[dataset], bootstrap))
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
    bootstrap: Bootstrap | None,
) -> str:
    parts = [f"## {dataset}", conditions_text(study, variants), "Mean ± standard deviation over seeds:"]
    parts.append(_metrics_table(study.columns, summary))
    if bootstrap is None and study.references:
        parts.append("No bootstrap of these runs yet: intervals are missing.")
    parts += [
        _difference_table(study.columns, reference, summary)
        for reference in study.references
        if _compared(summary, reference)
    ]
    if any(_compared(summary, reference) for reference in study.references):
        parts.append(f"![Differences on {dataset}]({dataset}.png)")
    return "\n\n".join(parts)


def _metrics_table(columns: Sequence[Column], summary: Mapping[str, VariantSummary]) -> str:
    told = any(of["item_parameters"] is not None for of in summary.values())  # runs of old did not count them
    rows = [
        [
            name,
            len(of["seeds"]),
            *(spread_text(of["metrics"][column]) for column in columns),
            *([f"{of['item_parameters'] or 0:,}"] if told else []),
            of["cpu_seconds"],
        ]
        for name, of in summary.items()
    ]
    return markdown_table(["variant", "seeds", *columns, *(["item parameters"] if told else []), "CPU s"], rows)


def _compared(summary: Mapping[str, VariantSummary], reference: str) -> bool:
    return any(reference in of["differences"] for of in summary.values())


def _difference_table(columns: Sequence[Column], reference: str, summary: Mapping[str, VariantSummary]) -> str:
    rows = [
        [name, *(difference_text(of["differences"][reference][column]) for column in columns)]
        for name, of in summary.items()
        if reference in of["differences"]
    ]
    return (
        f"Difference to {reference}: mean over seeds, {LEVEL:.0%} interval of a paired bootstrap over users "
        f"(it does not include the spread over seeds):\n\n{markdown_table(['variant', *columns], rows)}"
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
