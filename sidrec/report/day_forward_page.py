"""A day-forward study as one HTML file without external resources: verdicts, item age and updates, cost, days."""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element

from sidrec.io.files import replaced_file
from sidrec.io.output_folders import output_file
from sidrec.page.elements import Axis, element, is_titled, page, row, scale, track
from sidrec.report.charts import LEFT, RIGHT, WIDTH, Plot, Point, figure, spanning
from sidrec.report.study_charts import KINDS, difference_axis, verdict_marks
from sidrec.report.study_text import signed
from sidrec.study.day_comparison import METRICS, SIDS, TWIN, DayForward, Differences, SizeComparison, SliceDifference

TITLE = "Day forward: "
NAMES = {"gauc": "GAUC", "ne": "NE"}


def write_day_forward_page(found: DayForward, path: Path) -> Path:
    """Writes the page. Returns its path. Raises ContractError if another file is in the way."""
    path = output_file(path, "the page of a day-forward study", lambda there: is_titled(there, TITLE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as partial:
        partial.write_bytes(day_forward_page(found))
    return path


def day_forward_page(found: DayForward) -> bytes:
    """The page's content."""
    style = "".join((files("sidrec.report") / name).read_text(encoding="utf-8") for name in ("report.css", "study.css"))
    main = [*_head(found)]
    if found.sizes:
        main += [_size_section(found, size) for size in found.sizes]
        main += [_cost_section(found), _day_section(found)]
    main.append(_how_to_read(found))
    return page(f"{TITLE}{found.name}", main, style=style)


def _head(found: DayForward) -> Iterator[Element]:
    """Verdict sentences, after what is compared."""
    about = (
        f"From step {found.step:,} of {found.checkpoint}, the twin (HIDs alone) and the same model with SIDs train on, "
        f"day by day. Each of {len(found.days) - 1} days is scored by the models of the day before."
    )
    yield element("p", about, class_="lead")
    yield element("p", f"With SIDs: {found.item}; {found.catalogs} catalogs, fitted on the past.", class_="note")
    if not found.sizes:
        yield element("p", "No run is complete yet.", class_="warning")
    for size in found.sizes:
        for differences, title in _comparisons(size):
            for metric in METRICS:
                of = differences.get("all", {}).get(metric)
                if of is not None:
                    yield element("p", f"{title}, {_sentence(of, metric)}", class_=f"verdict {KINDS[of.verdict]}")


def _comparisons(size: SizeComparison) -> Iterator[tuple[Differences, str]]:
    share = _share(size)
    yield size.differences, f"At {share}"
    if size.against_whole:
        yield size.against_whole, f"At {share} with SIDs, against the twin with the whole table"


def _share(size: SizeComparison) -> str:
    return "the whole HID table" if size.size == 1 else f"1/{size.size} of the HID table's bytes"


def _sentence(of: SliceDifference, metric: str) -> str:
    ends = f"{signed(of.difference)} [{signed(of.interval.low)}, {signed(of.interval.high)}]"
    reason = of.why or of.advice
    return f"{NAMES[metric]} moves by {ends}, {len(of.by_run)} runs, {of.users:,} users: {of.verdict}" + (
        f"; {reason}." if reason else "."
    )


def _size_section(found: DayForward, size: SizeComparison) -> Element:
    parts: list[Element] = []
    for differences, title in _comparisons(size):
        charts = [_slice_chart(differences, metric, found.margins[metric]) for metric in METRICS]
        parts += [element("h3", f"{title}: difference of the model with SIDs to the twin")]
        parts += [element("div", *charts, class_="halves"), _slice_table(differences)]
    name = "Whole HID table" if size.size == 1 else f"1/{size.size} of the HID table's bytes"
    note = "By age of the item, in days since it was first seen, and by updates of its HID row in the scoring twin."
    return element("section", element("h2", name), element("p", note, class_="note"), *parts)


def _slice_chart(differences: Differences, metric: str, margin: float) -> Element | None:
    known = {name: of for name, metrics in differences.items() if (of := metrics[metric]) is not None}
    if not known:
        return None
    axis = difference_axis([end for of in known.values() for end in (of.interval.low, of.interval.high)], margin)
    rows = [
        row(None, name, track(axis, *_marks(axis, name, of, metric, margin)), *_figure(of))
        for name, of in known.items()
    ]
    better = ", lower is better" if metric == "ne" else ""
    title = element("h4", f"{NAMES[metric]}{better}")
    return element("div", title, *rows, scale(axis, NAMES[metric]), class_="chart differences")


def _marks(axis: Axis, name: str, of: SliceDifference, metric: str, margin: float) -> Iterator[Element]:
    hint = f"{name}: {_sentence(of, metric)}"
    yield from verdict_marks(axis, of.difference, of.interval, of.verdict, margin, hint, of.by_run)


def _figure(of: SliceDifference) -> list[Element | str]:
    return [signed(of.difference), element("br"), element("small", of.verdict, class_=KINDS[of.verdict])]


def _slice_table(differences: Differences) -> Element:
    heads = ["items", "metric", "twin", "with SIDs", "difference", "low", "high", "verdict", "rows", "users", "items "]
    rows = []
    for name, metrics in differences.items():
        for metric in METRICS:
            of = metrics[metric]
            if of is not None:
                values = [f"{of.reference:.4f}", f"{of.model:.4f}"]
                ends = map(signed, (of.difference, of.interval.low, of.interval.high))
                counts = [f"{count:,}" for count in (of.rows, of.users, of.items)]
                rows.append([name, NAMES[metric], *values, *ends, of.verdict, *counts])
    return element("details", element("summary", "Figures and counts"), _table(heads, rows, "Differences by slice"))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> Element:
    head = element("thead", element("tr", *(element("th", text, scope="col") for text in heads)))
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", text) for text in rest))
        for first, *rest in rows
    ]
    table = element("table", head, element("tbody", *body), class_="report")
    return element("div", table, class_="wide", role="region", aria_label=label, tabindex=0)


def _cost_section(found: DayForward) -> Element:
    heads = ["HID table", "model", "its bytes", "item parameters", "dense parameters", "step, ms", "of the twin's"]
    rows = []
    for size in found.sizes:
        twin = size.costs[TWIN].step_seconds
        for arm, name in ((TWIN, "twin"), (SIDS, "with SIDs")):
            cost = size.costs[arm]
            counts = ["–" if count is None else f"{count:,}" for count in (cost.item_parameters, cost.dense_parameters)]  # noqa: RUF001
            step = "–" if cost.step_seconds is None else f"{1000 * cost.step_seconds:.1f}"  # noqa: RUF001
            ratio = f"{cost.step_seconds / twin:.2f}" if cost.step_seconds and twin else "–"  # noqa: RUF001
            share = "whole" if size.size == 1 else f"1/{size.size}"
            rows.append([share, name, f"{cost.hid_bytes:,}", *counts, step, ratio])
    return element("section", element("h2", "Cost"), _table(heads, rows, "Cost"))


def _day_section(found: DayForward) -> Element:
    """The difference by day, at the first size, and what each day holds."""
    whole = found.sizes[0].differences.get("all", {})
    charts = [_day_chart(found, of, metric) for metric in METRICS if (of := whole.get(metric)) is not None]
    heads = ["day", "from", "to", "rows", "positive", "users", "items", "rows shown"]
    rows = [
        [
            *(day.name, day.begin, day.end, f"{day.rows:,}", f"{day.positives / max(1, day.rows):.1%}"),
            *(f"{day.users:,}", f"{day.items:,}", "all" if day.shown else "some negatives sampled"),
        ]
        for day in found.days
    ]
    note = "The first day is trained on only."
    pictures = element("div", *charts, class_="pictures")
    return element(
        "section", element("h2", "Days"), element("p", note, class_="note"), pictures, _table(heads, rows, "Days")
    )


def _day_chart(found: DayForward, of: SliceDifference, metric: str) -> Element:
    known = [value for value in of.by_day if value is not None]
    across, up = Axis(0.5, len(of.by_day) + 0.5), spanning([0.0, *known])
    plot = Plot(across, up, ("scored day", f"difference of {NAMES[metric]}"))
    zero = plot.y(0.0)
    plot.marks.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=zero, y2=zero, class_="zero"))
    points: list[Point] = [(place + 1.0, value) for place, value in enumerate(of.by_day)]
    plot.line(points, 0)
    every = max(1, len(points) // 8)
    ticks = [(x, f"{x:.0f}") for x, _ in points[::every]]
    title = f"{NAMES[metric]} with SIDs minus the twin's, mean over runs"
    return figure(title, plot.picture(title, ticks))


def _how_to_read(found: DayForward) -> Element:
    margins = ", ".join(f"{NAMES[metric]} {margin:g}" for metric, margin in found.margins.items())
    conditions = ", ".join(f"{name} {value}" for name, value in found.conditions.items())
    lines = [
        "Intervals cover other runs (seed and catalog fit), other days and other users; the t interval over runs is "
        "taken where it is wider.",
        f"tied: the interval lies within plus or minus {margins}. cannot tell: it covers 0 and more.",
        "Users and items are those of the fullest day; for GAUC, users with both classes.",
        f"{found.runs_wanted} runs were asked for; "
        + ", ".join(f"{len(size.runs)} are complete at {_share(size)}" for size in found.sizes)
        + ".",
        *found.notes,
        f"Measured on: {conditions}.",
    ]
    return element(
        "section",
        element("h2", "How to read this page"),
        element("ul", *(element("li", line) for line in lines), class_="how"),
    )
