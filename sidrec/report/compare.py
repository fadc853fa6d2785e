"""`sidrec compare`: runs on the same rows, with paired intervals over users, and what differs in their recipes.

The first run is the reference. Each run is one seed: the intervals cover users, not seeds.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sidrec.errors import ConfigError
from sidrec.io.files import replaced_file
from sidrec.io.output_folders import output_file
from sidrec.metrics.exact import FEW_USERS, SliceMetrics
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.resampling import METRICS, resample
from sidrec.metrics.slices import SLICES, ItemSlices
from sidrec.page.cards import MISSING
from sidrec.page.elements import element, is_titled, page
from sidrec.report.run_files import RunFiles, resamples_for
from sidrec.schema import ContractError
from sidrec.study.intervals import LEVEL, Difference, check_same_rows, resampled_differences
from sidrec.study.verdicts import LOWER_IS_BETTER
from sidrec.text import did_you_mean, text_table
from sidrec.train.progress import median_step_seconds
from sidrec.train.tracking import flat

NOT_COMPARED = ("name",)
TITLE = "Comparison: "
WORDS = ("Runs", "Recipe keys that differ")
"""Tables of text, which is aligned to the left."""
ONE_SEED = (
    "Each run is one seed: the intervals cover users, not seeds, and small differences often change sign with the "
    "seed. sidrec study compares variants over seeds."
)


@dataclass(frozen=True)
class Line:
    """A metric of a slice: the reference's value, and another run's. users: whom the metric covers.

    verdict: won, lost, tied, "few users" or "-".
    """

    slice: str
    metric: str
    users: int
    reference: float
    run: str
    value: float
    difference: Difference | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """letters: run -> its short name. recipes: key -> value by run. facts: what a run cost -> text by run."""

    split: str
    rows: int
    users: int
    resamples: int
    letters: Mapping[str, str]
    lines: Sequence[Line]
    recipes: Mapping[str, Sequence[str]]
    facts: Mapping[str, Sequence[str]]


def compare(paths: Sequence[Path], split: str) -> Comparison:
    """Compares runs on a split. Raises ConfigError for fewer than two runs, a repeated run, or a run without the split;
    ContractError for one without predictions, or whose rows differ from the first run's."""
    names = [str(path) for path in paths]
    if len(paths) < 2 or len(set(map(os.path.realpath, paths))) < len(paths):
        raise ConfigError(f"sidrec compare: expected at least two different runs, got {', '.join(names) or 'none'}")
    runs = {name: RunFiles(path) for name, path in zip(names, paths, strict=True)}
    predictions = {name: _predictions(run, split) for name, run in runs.items()}
    check_same_rows(predictions)
    first = predictions[names[0]]
    slices = next((run.slices for run in runs.values() if run.slices is not None), None)
    if slices is None:
        where = f"{runs[names[0]].recipe.data.path}/items.parquet"
        raise ContractError(where, "the items of these runs", "none that can be read from this folder")
    resamples = resamples_for(len(first) * len(runs))
    return Comparison(
        split=split,
        rows=len(first),
        users=len(set(first.user_N.tolist())),
        resamples=resamples,
        letters={name: _letter(number) for number, name in enumerate(names)},
        lines=_lines(predictions, slices, resamples, runs[names[0]].metrics[split]),
        recipes=_recipe_differences(list(runs.values())),
        facts=_facts(list(runs.values()), split),
    )


def _predictions(run: RunFiles, split: str) -> Predictions:
    if split not in run.metrics:
        known = ", ".join(run.metrics) or "none"
        near = did_you_mean(split, run.metrics)
        raise ConfigError(f"{run.run.path}: expected an evaluated split {split}, got {known}{near}")
    found = run.predictions(split)
    if found is None:
        path = run.run.predictions(split)
        raise ContractError(path, "predictions", f"none; sidrec evaluate {run.run.path} {split} writes them")
    return found


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"R{number + 1}"


def _lines(
    predictions: Mapping[str, Predictions], slices: ItemSlices, resamples: int, measured: SliceMetrics
) -> list[Line]:
    reference, *others = predictions
    masks = dict(slices.masks(predictions[reference].item_N))
    found = {name: resample(of_run, masks, resamples) for name, of_run in predictions.items()}
    differences = {name: resampled_differences(found[name], found[reference]) for name in others}
    lines = []
    for name in SLICES:
        for metric in METRICS:
            if (name, metric) not in found[reference].actual:
                continue
            for other in others:
                moved = differences[other][name][metric]
                values = found[reference].actual[(name, metric)], found[other].actual[(name, metric)]
                users = int(measured.get(name, {}).get(COVERED.get(metric, "users")) or 0)
                of_run = verdict(metric, moved, users)
                lines.append(Line(name, metric, users, values[0], other, values[1], moved, of_run))
    return lines


COVERED = {"gauc": "covered_users", "uauc": "covered_users"}
"""Metrics of users with both classes -> their count in metrics.json; others cover all users."""


def verdict(metric: str, moved: Difference | None, users: int) -> str:
    """Of a run against the reference: won or lost if the interval leaves out 0, else tied; "-" without a value."""
    if moved is None:
        return "-"
    if users < FEW_USERS:
        return "few users"
    if moved["low"] <= 0 <= moved["high"]:
        return "tied"
    return "won" if (moved["difference"] > 0) != (metric in LOWER_IS_BETTER) else "lost"


def _recipe_differences(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    recipes = [flat(asdict(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    values = {key: [recipe.get(key, MISSING) for recipe in recipes] for key in keys if key not in NOT_COMPARED}
    return {key: of_runs for key, of_runs in values.items() if len(set(of_runs)) > 1}


def _facts(runs: Sequence[RunFiles], split: str) -> dict[str, list[str]]:
    """Median time of a step, parameters, ranks, and the step of the model that was scored."""
    parameters = [run.facts.get("parameters", {}) for run in runs]
    keys = dict.fromkeys(key for of_run in parameters for key in of_run)
    found = {
        "step time, ms (median of the log)": [_step_time(run) for run in runs],
        "ranks": [_text(run.facts.get("ranks")) for run in runs],
        "device": [_text(run.facts.get("device")) for run in runs],
        **{key.replace("_", " "): [_text(of_run.get(key)) for of_run in parameters] for key in keys},
        "model after step": [_text(run.metrics[split].get("all", {}).get("step")) for run in runs],
    }
    return found


def _step_time(run: RunFiles) -> str:
    seconds = median_step_seconds(run.log, run.recipe.data.batch_size)
    return MISSING if seconds is None else f"{1000 * seconds:,.1f}"


def _text(value: Any) -> str:
    return MISSING if value is None else f"{value:,}" if isinstance(value, int) else str(value)


# The comparison as text and as a page.


def tables(found: Comparison) -> list[tuple[str, list[list[str]]]]:
    """Titles and rows of cells; the first row of a table is its head."""
    letters = list(found.letters.values())
    runs = [[letter, name] for name, letter in found.letters.items()]
    metrics = [["items", "metric", "users", letters[0], "run", "value", "difference", "low", "high", ""]]
    for line in found.lines:
        moved = line.difference
        ends = ["-", "-", "-"] if moved is None else [f"{moved[key]:+.4f}" for key in ("difference", "low", "high")]
        values = [found.letters[line.run], _value(line.value), *ends, line.verdict]
        metrics.append([line.slice, line.metric, f"{line.users:,}", _value(line.reference), *values])
    interval = f"difference to {letters[0]} with a {LEVEL:.0%} bootstrap interval over users"
    basis = f"{found.rows:,} rows, {found.users:,} users, {found.resamples:,} resamples"
    recipes = [["key", *letters], *([key, *values] for key, values in found.recipes.items())]
    facts = [["", *letters], *([key, *values] for key, values in found.facts.items())]
    return [
        ("Runs", [["", "run"], *runs]),
        (f"Split {found.split}: {interval} ({basis})", metrics),
        ("Recipe keys that differ", recipes if len(recipes) > 1 else [["key"], ["none"]]),
        ("Cost", facts),
    ]


def _value(value: float) -> str:
    return "-" if value != value else f"{value:.4f}"


def counts(found: Comparison) -> list[str]:
    """How often each run won, lost and tied against the reference."""
    lines = []
    for name, letter in list(found.letters.items())[1:]:
        verdicts = [line.verdict for line in found.lines if line.run == name]
        won, lost, tied = (verdicts.count(word) for word in ("won", "lost", "tied"))
        lines.append(f"{letter} against {next(iter(found.letters.values()))}: {won} won, {lost} lost, {tied} tied")
    judged = sum(line.verdict in ("won", "lost", "tied") for line in found.lines)
    chance = f"Of {judged} intervals at {LEVEL:.0%}, about {judged * (1 - LEVEL):.1f} leave out 0 by chance alone"
    few = f"; metrics of fewer than {FEW_USERS} users are not judged" if judged < len(found.lines) else ""
    return [*lines, f"{chance}{few}."]


def as_text(found: Comparison) -> str:
    """The comparison for a terminal."""
    left = dict.fromkeys(WORDS, len(found.letters) + 1)
    parts = [f"{title}\n\n{text_table(rows, left=left.get(title, 2))}" for title, rows in tables(found)]
    return "\n\n".join([*parts, "\n".join(counts(found)), ONE_SEED])


def write_page(found: Comparison, path: Path) -> Path:
    """Writes the comparison as one HTML file. Returns its path. Raises ContractError if another file is in the way."""
    path = output_file(path, "a comparison of runs", lambda there: is_titled(there, TITLE))
    main = [element("p", line, class_="lead") for line in counts(found)]
    main.append(element("p", ONE_SEED, class_="note"))
    for title, rows in tables(found):
        head, *lines = rows
        heads = element("thead", element("tr", *(element("th", text, scope="col") for text in head)))
        body = [
            element("tr", element("th", first, scope="row"), *(_cell(text) for text in rest)) for first, *rest in lines
        ]
        kind = "report words" if title in WORDS else "report"
        table = element("table", heads, element("tbody", *body), class_=kind)
        region = element("div", table, class_="wide", role="region", aria_label=title, tabindex=0)
        main.append(element("section", element("h2", title), region))
    style = (files("sidrec.report") / "report.css").read_text(encoding="utf-8")
    content = page(f"{TITLE}{', '.join(found.letters)}", main, style=style)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as partial:
        partial.write_bytes(content)
    return path


def _cell(text: str) -> Any:
    return element("td", text, class_=text if text in ("won", "lost") else None)
