"""Tuning studies: the same number of trials for every variant, the best one by the study's metric on its split."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from benchmarks.study.definition import Overrides, Study
from benchmarks.study.report import conditions_text, markdown_table, spread_text
from benchmarks.study.runs import TRIAL, study_runs
from benchmarks.study.store import RunResult, finished
from benchmarks.study.summary import VariantSummary, spread, summarize
from sidrec.train.run_directory import write_json, write_text

BEST_FILE = "best.yaml"


def tuning_report(study: Study, results: Path) -> str:
    """Writes summary.json, report.md and best.yaml into RESULTS/STUDY. Returns the text of report.md.

    best.yaml is the `tuned` section for a study of the same variants: data set -> variant -> overrides of
    the best trial. It names a variant only when all its trials have finished with all seeds.
    """
    folder = results / study.name
    found = finished(results, study_runs(study))
    best: dict[str, dict[str, Overrides]] = {}
    sections = [
        f"# {study.name}",
        f"{len(next(iter(study.trials.values())))} trials for each variant, seeds {list(study.seeds)}; "
        f"best by {study.select.upper()} on all items of split {study.split}, marked ★.",
    ]
    for dataset, runs in found.items():
        chosen = {name: _best_trial(study, name, runs) for name in study.variants}
        best[dataset] = {name: study.trials[name][trial] for name, trial in chosen.items() if trial}
        sections += [f"## {dataset}", conditions_text(study, runs), _table(study, runs, chosen)]
    text = "\n\n".join(sections if found else [*sections, "No run has finished."]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", _summaries(study, found))
    write_text(folder / BEST_FILE, yaml.safe_dump({"tuned": best}, sort_keys=False))
    write_text(folder / "report.md", text)
    return text


def _best_trial(study: Study, variant: str, runs: Mapping[str, Sequence[RunResult]]) -> str | None:
    """The trial with the highest mean over seeds, the first of equals; None while trials or seeds are missing."""
    scores: dict[str, float] = {}
    for trial in study.trials[variant]:
        of_trial = runs.get(f"{variant}{TRIAL}{trial}", ())
        found = spread([run["metrics"][study.split]["all"][study.select] for run in of_trial]) if of_trial else None
        if found is None or len(of_trial) < len(study.seeds):
            return None
        scores[trial] = found["mean"]
    return max(scores, key=lambda trial: scores[trial])


def _table(study: Study, runs: Mapping[str, Sequence[RunResult]], chosen: Mapping[str, str | None]) -> str:
    rows = []
    for variant, trials in study.trials.items():
        for trial, overrides in trials.items():
            of_trial = runs.get(f"{variant}{TRIAL}{trial}")
            if of_trial is None:
                continue
            summary = summarize(of_trial, study.split, study.columns, None)
            mark = " ★" if chosen[variant] == trial else ""
            metrics = [spread_text(summary["metrics"][column]) for column in study.columns]
            changes = f"`{yaml.safe_dump(overrides, default_flow_style=True, width=10_000).strip()}`"
            rows.append([variant, f"{trial}{mark}", len(of_trial), *metrics, changes])
    return markdown_table(["variant", "trial", "seeds", *study.columns, "overrides"], rows)


def _summaries(
    study: Study, found: Mapping[str, Mapping[str, Sequence[RunResult]]]
) -> dict[str, dict[str, VariantSummary]]:
    return {
        dataset: {name: summarize(of_trial, study.split, study.columns, None) for name, of_trial in runs.items()}
        for dataset, runs in found.items()
    }
