"""A day-forward study as Markdown: the verdicts first, then each size by item age and updates, costs, days."""

from collections.abc import Iterator, Sequence

from sidrec.study.day_comparison import (
    METRICS,
    SIDS,
    TWIN,
    DayForward,
    Differences,
    SizeComparison,
    SliceDifference,
)
from sidrec.text import byte_size

NAMES = {"gauc": "GAUC", "ne": "NE"}
NOTHING = "No run is complete yet: give more --minutes; the command goes on where it stopped."


def day_forward_report(found: DayForward) -> str:
    """The report."""
    return "\n".join([*_head(found), *_body(found)])


def _head(found: DayForward) -> Iterator[str]:
    scored = len(found.days) - 1
    yield f"# {found.name}: SIDs on a model that has converged"
    yield ""
    yield f"From step {found.step:,} of {found.checkpoint}, the twin (HIDs alone) and the same model with SIDs train"
    yield f"on, day by day. Each of {scored} day(s) is scored by the models of the day before, which had not seen it."
    yield f"With SIDs: `{found.item}`, {found.catalogs} catalog(s), fitted on items that the past had shown."
    yield ""


def _body(found: DayForward) -> Iterator[str]:
    if not found.sizes:
        yield NOTHING
        return
    yield from _verdicts(found)
    for size in found.sizes:
        yield from ("", f"## {_size(size.size)} of the HID table's bytes, {len(size.runs)} run(s)", "")
        yield from _differences(size.differences)
        if size.against_whole:
            yield from (f"With SIDs at {_size(size.size)}, against the twin with the whole table:", "")
            yield from _differences(size.against_whole)
    yield from ("## Cost", "")
    yield from _costs(found)
    yield from ("", "## Days", "")
    yield from _days(found)
    yield from ("", "## How to read this", "")
    yield from (f"- {line}" for line in (*_reading(found), *found.notes))


def _size(size: int) -> str:
    return "all" if size == 1 else f"1/{size}"


def _verdicts(found: DayForward) -> Iterator[str]:
    for size in found.sizes:
        for metric in METRICS:
            yield f"- {_size(size.size)} of the HID bytes, {NAMES[metric]}: {_sentence(size.differences, metric)}"
        for metric in METRICS if size.against_whole else ():
            told = _sentence(size.against_whole, metric)
            where = f"{_size(size.size)} of the HID bytes with SIDs against the whole table without"
            yield f"- {where}, {NAMES[metric]}: {told}"


def _sentence(differences: Differences, metric: str) -> str:
    of = differences["all"][metric]
    if of is None:
        return "undefined on these days"
    return f"SIDs **{of.verdict}**, {_difference(of)}{_why(of)}"


def _why(of: SliceDifference) -> str:
    reason = of.why or of.advice
    return f" ({reason})" if reason else ""


def _difference(of: SliceDifference) -> str:
    return f"{of.difference:+.4f} [{of.interval.low:+.4f}, {of.interval.high:+.4f}]"


def _differences(differences: Differences, metrics: Sequence[str] = METRICS) -> Iterator[str]:
    for metric in metrics:
        yield f"| {NAMES[metric]} of rows of | twin | with SIDs | difference | verdict | rows | users | items |"
        yield "|---|---:|---:|---|---|---:|---:|---:|"
        for name, of_metric in differences.items():
            of = of_metric[metric]
            if of is None:
                yield f"| {name} | - | - | undefined | | | | |"
            else:
                values = f"{of.reference:.4f} | {of.model:.4f} | {_difference(of)} | {of.verdict}"
                yield f"| {name} | {values} | {of.rows:,} | {of.users:,} | {of.items:,} |"
        yield ""


def _costs(found: DayForward) -> Iterator[str]:
    yield "| HID bytes | model | HID table | item parameters | dense parameters | ms a step | of the twin's |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for size in found.sizes:
        for arm, name in ((TWIN, "twin"), (SIDS, "with SIDs")):
            cost = size.costs[arm]
            counts = [_count(cost.item_parameters), _count(cost.dense_parameters)]
            step = "-" if cost.step_seconds is None else f"{1000 * cost.step_seconds:.1f}"
            cells = [_size(size.size), name, byte_size(cost.hid_bytes), *counts, step, _ratio(size, arm)]
            yield f"| {' | '.join(cells)} |"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _ratio(size: SizeComparison, arm: str) -> str:
    ours, twin = size.costs[arm].step_seconds, size.costs[TWIN].step_seconds
    return f"{ours / twin:.2f}" if ours and twin else "-"


def _days(found: DayForward) -> Iterator[str]:
    whole = found.sizes[0].differences["all"]
    yield "| day | from | to | rows | positive | users | items | GAUC with SIDs - twin | NE |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|"
    for place, day in enumerate(found.days):
        by_day = [_of_day(whole[metric], place - 1) if place else "trained on" for metric in METRICS]
        share = f"{day.positives / day.rows:.1%}"
        cells = [day.name, day.begin, day.end, f"{day.rows:,}", share, f"{day.users:,}", f"{day.items:,}", *by_day]
        yield f"| {' | '.join(cells)} |"


def _of_day(of: SliceDifference | None, place: int) -> str:
    value = None if of is None else of.by_day[place]
    return "-" if value is None else f"{value:+.4f}"


def _reading(found: DayForward) -> Iterator[str]:
    wanted = found.runs_wanted
    complete = ", ".join(f"{len(size.runs)} at {_size(size.size)}" for size in found.sizes)
    yield f"runs complete, of {wanted} each: {complete}; run r has the training seed r and its own fit of the catalog"
    yield (
        "differences are means over runs and days; intervals (95%) resample runs, days and users together, or are the "
        "t interval over runs where that is wider. NE: lower is better"
    )
    if len(found.days) < 6:
        yield "with fewer than five scored days, intervals hold too little of what differs between days"
    margins = ", ".join(f"{NAMES[metric]} {margin:g}" for metric, margin in found.margins.items())
    yield f"tied: the interval lies within plus or minus {margins}"
    yield "age: days since an item was first seen, in a row or a history; updates: of its HID row in the scoring twin"
    yield (
        "users and items: of the fullest day; for GAUC, users with both classes and their rows. Models of other sizes "
        "start from a twin of that size, trained on the past as the run was; its HIDs are hashed"
    )
    cpu, commit = found.conditions.get("cpu"), found.conditions.get("commit")
    yield f"measured on {cpu}, {found.conditions.get('cores')} cores, commit {commit}"
