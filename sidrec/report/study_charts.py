"""Pictures of a study: differences with intervals, quality by cost, runs, tuning, gates.

A variant's number is the same in every picture and table of the page.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from xml.etree.ElementTree import Element

from sidrec.page.elements import MARGIN, Axis, element, row, scale, track
from sidrec.page.labels import DOT, numbers
from sidrec.report.charts import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, WIDTH, Plot, Point, figure, spanning
from sidrec.report.study_text import agreement, difference_text, short, signed, what_would_tell
from sidrec.study.comparison import DatasetComparison, PairedDifference
from sidrec.study.intervals import Interval
from sidrec.study.verdicts import Verdict

KINDS: Mapping[Verdict, str] = {"won": "won", "lost": "lost", "tied": "tied", "cannot tell": "open"}
"""Verdict -> class of its marks."""
MOST_LINES = 6
"""Variants up to which lines join the runs of one number."""
CURVES = 6
"""Curves of one tuning picture."""
Numbers = Mapping[str, int]


# Differences: a dot with an interval per variant.


def difference_chart(
    of: DatasetComparison, reference: str, column: str, margin: float, numbered: Numbers, runs: bool
) -> Element | None:
    """Rows of one column against one reference; None without a difference. runs: also a pale dot for each run."""
    found = {
        name: difference
        for name, variant in of.variants.items()
        if (difference := variant.against.get(reference, {}).get(column)) is not None
    }
    if not found:
        return None
    ends = [end for each in found.values() for end in _ends(each)]
    axis = difference_axis(ends, margin)
    rows = [
        row(numbered[name], name, track(axis, *_marks(axis, name, each, margin, runs)), *_figure(each))
        for name, each in found.items()
    ]
    title = element("h4", f"{column}, difference to {reference}")
    return element("div", title, *rows, scale(axis, column), class_="chart differences")


def _ends(found: PairedDifference) -> tuple[float, ...]:
    return (found.difference,) if found.interval is None else (found.interval.low, found.interval.high)


def _figure(found: PairedDifference) -> list[Element | str]:
    """The difference, and the verdict under it."""
    return [signed(found.difference), element("br"), element("small", found.verdict, class_=KINDS[found.verdict])]


def _marks(axis: Axis, name: str, found: PairedDifference, margin: float, runs: bool) -> Iterator[Element]:
    hint = f"{name}: {difference_text(found)}, {len(found.runs)} runs, {found.positive} above 0: {found.verdict}"
    hint += f"; {what_would_tell(found)}" if found.verdict == "cannot tell" else ""
    by_run = found.by_run if runs else ()
    yield from verdict_marks(axis, found.difference, found.interval, found.verdict, margin, hint, by_run)


def verdict_marks(
    axis: Axis,
    difference: float,
    interval: Interval | None,
    verdict: Verdict,
    margin: float,
    hint: str,
    by_run: Sequence[float] = (),
) -> Iterator[Element]:
    """The margin around 0, a pale dot for each run, the interval, the mean by its verdict; all show the hint."""
    low, high = (100 * axis.at(axis.within(end)) for end in (-margin, margin))
    yield element("rect", x=f"{low:.2f}%", width=f"{high - low:.2f}%", y="-19", height="38", class_="margin")
    yield element("line", x1=axis.percent(0.0), x2=axis.percent(0.0), y1="-19", y2="19", class_="zero")
    for moved in by_run:
        if axis.within(moved) == moved:
            yield element("circle", cx=axis.percent(moved), cy="0", r="3", class_="round")
    kind = KINDS[verdict]
    if interval is not None:
        ends = [axis.percent(end) for end in (interval.low, interval.high)]
        yield element("line", x1=ends[0], x2=ends[1], y1="0", y2="0", class_=f"interval {kind}")
        for end in ends:
            yield element("line", x1=end, x2=end, y1="-4", y2="4", class_=f"interval {kind}")
    yield element("circle", cx=axis.percent(difference), cy="0", r="5", class_=f"median {kind}")
    yield element("rect", element("title", hint), x="0", y="-19", width="100%", height="38", class_="touch")


def difference_axis(ends: Sequence[float], margin: float) -> Axis:
    """Over all ends and 0, and over the margin of a tie unless that is tiny."""
    return spanning([*ends, 0.0, *((-margin, margin) if max(map(abs, ends)) < 20 * margin else ())])


# Quality by cost.


def cost_charts(of: DatasetComparison, column: str, numbered: Numbers) -> Iterator[Element]:
    """Mean of the column against time of a step, and against the parameters of item tables."""
    quality = {name: spread.mean for name, variant in of.variants.items() if (spread := variant.metrics[column])}
    costs = {name: variant.cost for name, variant in of.variants.items() if name in quality}
    steps = {name: 1000 * cost.step_seconds.mean for name, cost in costs.items() if cost.step_seconds is not None}
    tables = {name: cost.item_parameters / 1e6 for name, cost in costs.items() if cost.item_parameters is not None}
    cpu = {name: cost.cpu_seconds.mean for name, cost in costs.items() if cost.cpu_seconds is not None}
    for title, unit, found in (
        ("Quality and time", "step, ms", steps) if steps else ("Quality and time", "CPU s of a run", cpu),
        ("Quality and size", "parameters of item tables, millions", tables),
    ):
        if found:
            yield _scatter(title, unit, found, quality, column, numbered)


def _scatter(
    title: str, unit: str, costs: Mapping[str, float], quality: Mapping[str, float], column: str, numbered: Numbers
) -> Element:
    across, up = (_wider(spanning(values)) for values in (list(costs.values()), [quality[name] for name in costs]))
    plot = Plot(across, up, (unit, column))
    dots = {}
    for name, cost in costs.items():
        x, y = plot.x(cost), plot.y(quality[name])
        dots[numbered[name]] = x, y
        hint = f"{numbered[name]}. {name}: {column} {short(quality[name])}, {cost:,.4g} {unit}"
        plot.marks.append(element("circle", element("title", hint), cx=x, cy=y, r=DOT, class_="dot"))
    plot.marks += numbers(dots, (LEFT, 0.0, WIDTH - RIGHT, HEIGHT - BOTTOM))
    return figure(title, plot.picture(f"{column} against {unit}"))


def _wider(axis: Axis) -> Axis:
    """With a margin for dots and their numbers."""
    margin = 0.05 * (axis.high - axis.low)
    return Axis(axis.low - margin, axis.high + margin)


# Runs.


def runs_chart(of: DatasetComparison, column: str, names: Sequence[str], numbered: Numbers) -> Element | None:
    """A dot for each run, the mean as a bar; lines join the runs of one number, for few variants."""
    found = {name: spread for name in names if (spread := of.variants[name].metrics[column]) is not None}
    if not found:
        return None
    values = [value for spread in found.values() for value in spread.values]
    across = Axis(-0.5, len(found) - 0.5)
    plot = Plot(across, spanning(values), ("number of the variant", column))
    by_run = [dict(zip(of.variants[name].runs, spread.values, strict=True)) for name, spread in found.items()]
    for place, (left, right) in enumerate(pairwise(by_run)):
        for run in left.keys() & right.keys() if len(found) <= MOST_LINES else ():
            ends = {"x1": plot.x(place), "y1": plot.y(left[run]), "x2": plot.x(place + 1), "y2": plot.y(right[run])}
            plot.marks.append(element("line", **ends, class_="pair"))
    for place, (name, spread) in enumerate(found.items()):
        x, y = plot.x(place), plot.y(spread.mean)
        half = min(14.0, 0.4 * (WIDTH - LEFT - RIGHT) / len(found))
        plot.marks.append(element("line", x1=x - half, x2=x + half, y1=y, y2=y, class_="mark"))
        for run, value in zip(of.variants[name].runs, spread.values, strict=True):
            plot.dot(place, value, 0, f"{name}, run {run}: {short(value)}")
    ticks = [(float(place), f"{numbered[name]}") for place, name in enumerate(found)]
    joined = "; lines join runs of one number" if len(found) <= MOST_LINES else ""
    return figure(f"{column} of each run, bar: mean{joined}", plot.picture(f"{column} of each run", ticks))


# Tuning.


def tuning_charts(curves: Mapping[str, Sequence[float | None]], metric: str, numbered: Numbers) -> Iterator[Element]:
    """The best value so far after each trial, a few variants to a picture, on one axis."""
    known = [value for curve in curves.values() for value in curve if value is not None]
    if not known:
        return
    up, names = spanning(known), list(curves)
    most = max(map(len, curves.values()))
    across = Axis(1 - MARGIN * most, most * (1 + MARGIN) or 1.0)
    for start in range(0, len(names), CURVES):
        group = names[start : start + CURVES]
        plot = Plot(across, up, ("trial", metric))
        for colour, name in enumerate(group):
            points: list[Point] = [(trial + 1.0, value) for trial, value in enumerate(curves[name])]
            plot.line(points, colour % COLOURS)
        ticks = [(tick, f"{tick:g}") for tick in across.ticks() if tick == int(tick) and tick >= 1]
        legend = [f"{numbered[name]} {name}" if name in numbered else name for name in group]
        title = f"Best {metric} so far on the tuning split"
        yield figure(title, plot.picture(title, ticks), legend)


# Gates.


def gate_rows(of: DatasetComparison, numbered: Numbers) -> Element | None:
    """The gate's direction by run: a dot for each; None without gates."""
    axis = Axis(-1.04, 1.04)
    rows = []
    for name, variant in of.variants.items():
        if not variant.gates:
            continue
        marks = [element("line", x1=axis.percent(0.0), x2=axis.percent(0.0), y1="-14", y2="14", class_="zero")]
        ranks = [gate.rank for gate in variant.gates]
        for run, rank in zip(variant.runs, ranks, strict=False):
            hint = element("title", f"{name}, run {run}: {'constant' if rank is None else f'{rank:+.2f}'}")
            kind = "dot hollow" if rank is None else "dot"
            marks.append(element("circle", hint, cx=axis.percent(rank or 0.0), cy="0", r="4.5", class_=kind))
        agrees, _, how = agreement(ranks).partition(":")
        figures: list[Element | str] = [agrees]
        if how:
            figures += [element("br"), element("small", how.partition(",")[0].strip())]
        rows.append(row(numbered[name], name, track(axis, *marks), *figures))
    return element("div", *rows, scale(axis, "correlation"), class_="chart") if rows else None
