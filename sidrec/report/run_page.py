"""`sidrec report`: a run as one HTML file without external resources. What a run lacks is named, with how to get it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from sidrec.io.files import replaced_file
from sidrec.io.output_folders import output_file
from sidrec.metrics.exact import PROBABILITY, QUALITY, Metrics
from sidrec.metrics.slices import SLICES
from sidrec.page.cards import MISSING, card
from sidrec.page.elements import element, is_titled, page, row, scale, track
from sidrec.report.charts import (
    Series,
    figure,
    gate_chart,
    histogram_bars,
    interval_mark,
    line_chart,
    reliability_chart,
    spanning,
)
from sidrec.report.run_files import Codes, RunFiles, ScoredSplit, reliability, scored_split

TITLE = "Run: "
SKIPPED_LISTED = 10
METRICS_OVER_STEPS = ("auc", "gauc", "ne")
NOT_TERMS = ("step", "epoch", "lr_factor", "samples_per_second", "skipped")


def write_report(run: Path, out: Path | None) -> Path:
    """Writes the report of a run to `out`, by default RUN/report.html; replaces an older one.

    Returns the file's path. Raises ConfigError if there is no run, ContractError if another file is in the way.
    """
    content = report_of(RunFiles(run))
    path = output_file(run / "report.html" if out is None else out, "the report of a run", is_report)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as partial:
        partial.write_bytes(content)
    return path


def is_report(path: Path) -> bool:
    """Whether a file is the report of a run."""
    return is_titled(path, TITLE)


def report_of(run: RunFiles) -> bytes:
    """The page's content."""
    splits = [scored_split(run, split) for split in run.metrics]
    main = [
        *_summary(run, splits),
        _facts(run),
        *(_scored(run, split) for split in splits),
        _section("Training", _training_note(run), *_training(run)),
        _section("Evaluations during training", "Exact metrics of the split by item slice.", *_evaluations(run)),
        _section("Semantic IDs", "The catalog's codes, each item counted once.", *_codes(run)),
        _section("Warnings", "All warnings of trainings and evaluations of this run.", _warnings(run)),
        element("section", element("h2", "Recipe"), _recipe(run)),
    ]
    style = (files("sidrec.report") / "report.css").read_text(encoding="utf-8")
    return page(f"{TITLE}{run.recipe.name}, seed {run.recipe.seed}", main, style=style)


def _section(title: str, note: str, *content: Element | None) -> Element:
    return element("section", element("h2", title), element("p", note, class_="note"), *content)


def absent(text: str) -> Element:
    """A sentence in place of a part that a run lacks."""
    return element("p", text, class_="absent")


def _summary(run: RunFiles, splits: Sequence[ScoredSplit]) -> Iterator[Element]:
    if not splits:
        yield element(
            "p", f"Not evaluated yet: a training that ends, or sidrec evaluate {run.run.path}, does.", class_="lead"
        )
    for split in splits:
        of_all = split.metrics.get("all", {})
        found = ", ".join(f"{name} {_number(of_all.get(name))}" for name in ("auc", "gauc", "ne"))
        rows = f"{_number(of_all.get('rows'))} rows, model after step {_number(of_all.get('step'))}"
        yield element("p", f"{split.split}: {found} ({rows}).", class_="lead")
    if run.skipped:
        counted = f"{len(run.skipped)} steps of this training were left out: a loss or gradient was not finite."
        yield element("p", counted, class_="warning")
    if run.warnings:
        yield element("p", f"{len(run.warnings)} warnings, below.", class_="warning")


def _facts(run: RunFiles) -> Element:
    """Cards: what ran where, and its parameters."""
    last = run.log[-1] if run.log else {}
    of_run = {
        "run directory": str(run.trained.path),
        "data": str(run.recipe.data.path),
        **({} if run.run is run.trained else {"evaluation": str(run.run.path)}),
        "steps logged": last.get("step"),
        "epochs": last["epoch"] + 1 if "epoch" in last else None,
        **{key: value for key, value in run.facts.items() if key not in ("parameters", "start")},
    }
    cards = [card("Run", of_run), card("Parameters", run.facts.get("parameters", {"parameters": None}))]
    return element("div", *cards, class_="cards two")


def _recipe(run: RunFiles) -> Element:
    """The sections of the recipe, every default filled in; folded."""
    sections = {key: value for key, value in asdict(run.recipe).items() if isinstance(value, dict)}
    cards = [card(key, value) for key, value in sections.items()]
    about = "Every key with its value"
    return element("details", element("summary", about), element("div", *cards, class_="cards many"))


def _number(value: float | int | None) -> str:
    if value is None:
        return MISSING
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


# The training.


def _training_note(run: RunFiles) -> str:
    every = run.recipe.train.log_every
    note = f"Means over the steps between lines of metrics.jsonl (every {every} steps) and over all ranks."
    return f"{note} Dashed: steps that were left out." if run.skipped else note


def _training(run: RunFiles) -> Iterator[Element | None]:
    if not run.log:
        yield absent("No step was logged yet.")
        return
    skipped = [line["step"] for line in run.skipped]
    terms = [name for name in dict.fromkeys(key for line in run.log for key in line) if name not in NOT_TERMS]
    series = [Series(name, _points(run.log, name)) for name in terms]
    losses = [each for each in series if each.name == "loss"]
    parts = [each for each in series if each.name != "loss"]
    charts = [
        line_chart("Loss", losses, "loss", marked=skipped),
        line_chart("Terms of the loss", parts, "term") if len(parts) > 1 else None,
        line_chart("Factor on the learning rates", [Series("", _points(run.log, "lr_factor"))], "factor", zero=True),
        line_chart("Speed", [Series("", _points(run.log, "samples_per_second"))], "samples/s", zero=True),
    ]
    yield element("div", *charts, class_="pictures")
    if run.skipped:
        more = len(run.skipped) - SKIPPED_LISTED
        lines = [f"step {line['step']}: {line['what']}" for line in run.skipped[:SKIPPED_LISTED]]
        lines += [f"and {more} more in {run.run.skipped.name}"] if more > 0 else []
        listed = element("ul", *(element("li", line) for line in lines), class_="warnings")
        yield element("div", element("h3", "Steps left out"), listed)


def _points(log: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float | None]]:
    return [(line["step"], line.get(name)) for line in log]


def _evaluations(run: RunFiles) -> Iterator[Element]:
    if not run.evaluations:
        yield absent("None. The section checkpoint.best of a recipe evaluates a split during training.")
        return
    charts = []
    for split in dict.fromkeys(line["split"] for line in run.evaluations):
        lines = [line for line in run.evaluations if line["split"] == split]
        for metric in METRICS_OVER_STEPS:
            series = [
                Series(name, [(line["step"], line["metrics"].get(name, {}).get(metric)) for line in lines])
                for name in SLICES
            ]
            charts.append(line_chart(f"{metric} on {split}", series, metric))
        charts.append(_over_steps(lines, "gate_by_exposure", f"Mean gate on {split}, by exposures of the item", "g"))
        charts.append(_over_steps(lines, "attention", f"Attention weights on {split}", "mean weight"))
    yield element("div", *charts, class_="pictures")


def _over_steps(lines: Sequence[dict[str, Any]], key: str, title: str, up: str) -> Element | None:
    names = dict.fromkeys(name for line in lines for name in line.get(key, {}))
    series = [Series(name, [(line["step"], line.get(key, {}).get(name)) for line in lines]) for name in names]
    return line_chart(title, series, up, zero=True)


# An evaluated split: slices, calibration, gate, attention.


def _scored(run: RunFiles, split: ScoredSplit) -> Element:
    without = (
        f"without intervals: there are no predictions (evaluate.save_predictions, then sidrec evaluate {run.run.path})"
        if split.predictions is None
        else "without intervals: items.parquet cannot be read from here (paths are relative to the folder of training)"
    )
    basis = f"with 95% bootstrap intervals over users, {split.resamples:,} resamples" if split.resamples else without
    return element(
        "section",
        element("h2", f"Split {split.split}"),
        element("p", f"Metrics by item slice, {basis}. An interval knows nothing of other seeds.", class_="note"),
        _slice_table(split),
        *_slice_chart(split),
        element("div", _calibration(run, split), _gate(run, split.split), class_="pictures"),
        _attention(run, split.split),
    )


def _slice_table(split: ScoredSplit) -> Element:
    heads = ("items", "rows", "positives", "users", "items covered", *QUALITY)
    lines = []
    for name, values in split.metrics.items():
        counts = [_number(values.get(key)) for key in ("rows", "positives", "users")]
        covered = _number(split.items.get(name))
        cells = [element("td", text) for text in (*counts, covered)]
        cells += [_cell(split, name, values, metric) for metric in QUALITY]
        lines.append(element("tr", element("th", name, scope="row"), *cells))
    head = element("thead", element("tr", *(element("th", text, scope="col") for text in heads)))
    table = element("table", head, element("tbody", *lines), class_="report")
    label = f"Metrics of {split.split} by slice"
    return element("div", table, class_="wide", role="region", aria_label=label, tabindex=0)


def _cell(split: ScoredSplit, name: str, values: Metrics, metric: str) -> Element:
    value, ends = values.get(metric), split.intervals.get((name, metric))
    if value is None or ends is None or ends.low is None or ends.high is None:
        return element("td", _number(value))
    return element("td", f"{value:.4f}", element("br"), element("small", f"{ends.low:.4f} to {ends.high:.4f}"))


def _slice_chart(split: ScoredSplit) -> Iterator[Element]:
    """AUC by slice with intervals, on one axis."""
    found = {name: split.intervals[(name, "auc")] for name in split.metrics if (name, "auc") in split.intervals}
    known = {name: ends for name, ends in found.items() if ends.low is not None and ends.high is not None}
    if not known:
        return
    axis = spanning([value for ends in known.values() for value in (ends.low or 0.0, ends.high or 0.0)])
    rows = []
    for name, ends in known.items():
        low, high = ends.low or 0.0, ends.high or 0.0
        marks = interval_mark(axis, ends.found, low, high, f"{name}: {ends.found:.4f}, {low:.4f} to {high:.4f}")
        rows.append(row(None, name, track(axis, *marks), f"{ends.found:.4f}"))
    yield element("div", element("h3", "auc"), *rows, scale(axis, "auc"), class_="chart")


def _calibration(run: RunFiles, split: ScoredSplit) -> Element:
    if split.predictions is None or not len(split.predictions):
        missing = f"No predictions of {split.split}: evaluate.save_predictions writes them."
        return element("figure", element("figcaption", element("b", "Calibration")), absent(missing))
    ratio = _number(split.metrics.get("all", {}).get(PROBABILITY[-1]))
    title = f"Calibration: mean prediction over mean label {ratio}; bars: rows"
    return figure(title, reliability_chart(reliability(split.predictions)))


def _gate(run: RunFiles, split: str) -> Element:
    found = run.gate(split)
    if found is None:
        missing = (
            f"No {run.run.path / f'gate_{split}.json'}: it takes a model with a gate, exposures in the log "
            "(stat_exposures) and saved predictions."
        )
        return element("figure", element("figcaption", element("b", "Gate by exposure")), absent(missing))
    rank = found.get("spearman_of_deciles")
    text = "constant" if rank is None else f"Spearman {rank:.2f}"
    title = f"Gate by exposure (1: HID, 0: SID), {text}; bars: 95% of the mean; band: 10% to 90% of the rows"
    return figure(title, gate_chart(found))


def _attention(run: RunFiles, split: str) -> Element:
    found = run.attention(split)
    if found is None:
        return absent(f"No attention over granularities on {split}: the model has no fusion.")
    histogram = found.get("histogram", {})
    rows = [
        row(None, name, histogram_bars(histogram.get(name, [])), f"mean {weight:.3f}")
        for name, weight in found["weights"].items()
    ]
    entropy = f"entropy {found['entropy_nats']:.2f} of {found['largest_entropy_nats']:.2f} nats"
    note = f"Item bags by weight, from 0 to 1; {entropy}."
    return element(
        "div",
        element("h3", "Attention over granularities"),
        element("p", note if histogram else f"{entropy}. Histograms: evaluate this run again.", class_="note"),
        *rows,
        class_="chart ranks",
    )


# Semantic IDs and warnings.


def _codes(run: RunFiles) -> Iterator[Element]:
    found = run.codes
    if not isinstance(found, Codes):
        yield absent(found)
        return
    quality = found.quality
    whole = {
        "catalog": str(found.folder),
        "items": quality.get("items"),
        "unique SIDs": (quality.get("unique_prefixes") or [None])[-1],
        "collision rate": quality.get("collision_rate"),
        "items that share their SID": quality.get("collided_item_rate"),
        "largest group": quality.get("max_group_size"),
        "mean group": quality.get("mean_group_size"),
        "unexplained variance": quality.get("unexplained_variance"),
    }
    yield element("div", card("Whole SIDs", whole), class_="cards two")
    columns = ("utilisation", "dead_codes", "perplexity", "top1_load", "unique_prefixes")
    heads = ("level", "codes in use", "dead codes", "perplexity", "share of the top code", "unique prefixes")
    lines = []
    for level in range(len(quality.get("utilisation", []))):
        values = [quality.get(column, []) for column in columns]
        cells = [element("td", _number(each[level]) if level < len(each) else MISSING) for each in values]
        lines.append(element("tr", element("th", f"{level + 1}", scope="row"), *cells))
    head = element("thead", element("tr", *(element("th", text, scope="col") for text in heads)))
    table = element("table", head, element("tbody", *lines), class_="report")
    yield element("div", table, class_="wide", role="region", aria_label="Codes by level", tabindex=0)


def _warnings(run: RunFiles) -> Element:
    if not run.warnings:
        return absent("None was recorded.")
    return element("ul", *(element("li", line, class_="warning") for line in run.warnings), class_="warnings")
