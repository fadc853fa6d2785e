"""The page's charts and tables of measured plans: steps, parts of a step, ranks, predictions, all figures.

`ranked` is always `fastest_first`: a plan's position, from 1, is its number in every section. Plans far slower than
the others do not stretch the axes (`on_scale`); an arrow at the right end marks them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree.ElementTree import Element

from sidrec.bench.ranking import (
    MISSING,
    MODELS,
    TIMES,
    Model,
    ModelRanking,
    PairedSlowdown,
    imbalance,
    milliseconds,
    on_scale,
    paired_slowdown,
    rank_by_model,
    same_plan,
    step,
    three_digits,
    tied_with_first,
)
from sidrec.bench.result import PHASES, PlanMeasurement, Timing
from sidrec.page.elements import (
    Axis,
    around,
    beyond,
    breakable,
    byte_unit,
    element,
    from_zero,
    logarithmic,
    row,
    scale,
    track,
)
from sidrec.page.labels import DOT, numbers

PARTS = [phase for phase in PHASES if phase != "step"]


def step_chart(ranked: Sequence[PlanMeasurement]) -> Element:
    """For each plan the median step, p10 to p90, and the median of each round."""
    times = [(plan.timings["step"].p10, plan.timings["step"].p90, *plan.rounds) for plan in on_scale(ranked)]
    return _step_rows(ranked, around([time for plan in times for time in plan]))


def all_steps_chart(ranked: Sequence[PlanMeasurement]) -> Element | None:
    """The same on a logarithmic axis that reaches all plans; None if `step_chart` shows all of them."""
    if len(on_scale(ranked)) == len(ranked):
        return None
    axis = logarithmic([time for plan in ranked for time in (plan.timings["step"].p10, plan.timings["step"].p90)])
    return element(
        "div", element("h3", "All plans, on a logarithmic axis"), _step_rows(ranked, axis), class_="all-plans"
    )


def _step_rows(ranked: Sequence[PlanMeasurement], axis: Axis) -> Element:
    tied = tied_with_first(ranked)
    rows = [
        row(number, plan.title, track(axis, *_steps(axis, plan, ranked[0])), *_step_figure(plan, tied))
        for number, plan in enumerate(ranked, 1)
    ]
    return element("div", *rows, scale(axis, "ms"), class_="chart")


def _step_figure(plan: PlanMeasurement, tied: Sequence[PlanMeasurement]) -> list[Element | str]:
    """The median step; before it, whether the plan ties with the first or was dropped."""
    remark = "tie" if len(tied) > 1 and plan in tied else "dropped" if plan.dropped is not None else None
    figure = milliseconds(step(plan)).replace(" ", "\N{NO-BREAK SPACE}")
    return [element("small", remark), " ", figure] if remark else [figure]


def _steps(axis: Axis, plan: PlanMeasurement, fastest: PlanMeasurement) -> list[Element]:
    timing = plan.timings["step"]
    slowdown = paired_slowdown(plan.rounds, fastest.rounds)
    hint = f"{plan.title}: median {milliseconds(timing.p50)}, {_spread(timing)}"
    if plan is not fastest and slowdown is not None:
        hint += f"; slower than {fastest.title} in {slowdown.slower} of {slowdown.rounds} rounds"
    if timing.p50 > axis.high:
        return [beyond(hint)]
    low, high = (axis.percent(axis.within(value)) for value in (timing.p10, timing.p90))
    rounds = [
        element("circle", cx=axis.percent(each), cy="0", r="3", class_="round")
        for each in plan.rounds
        if axis.within(each) == each
    ]
    return [
        element("line", x1=low, x2=high, y1="0", y2="0", class_="interval"),
        *(element("line", x1=end, x2=end, y1="-4", y2="4", class_="interval") for end in (low, high)),
        *rounds,
        element("circle", cx=axis.percent(timing.p50), cy="0", r="5", class_="median"),
        element("rect", element("title", hint), x="0", y="-13", width="100%", height="26", class_="touch"),
    ]


def _spread(timing: Timing) -> str:
    return f"p10 {three_digits(timing.p10)}, p90 {three_digits(timing.p90)}"


def part_chart(ranked: Sequence[PlanMeasurement]) -> Element | None:
    """The parts' medians stacked, with a line at the median of the whole step. None if no parts were timed."""
    parts = {plan.name: {part: plan.timings[part].p50 for part in PARTS if part in plan.timings} for plan in ranked}
    if not any(parts.values()):
        return None
    axis = from_zero([max(sum(parts[plan.name].values()), step(plan)) for plan in on_scale(ranked)])
    rows = [
        row(number, plan.title, track(axis, *_stack(axis, plan, parts[plan.name])), _sum(parts[plan.name]))
        for number, plan in enumerate(ranked, 1)
    ]
    keys = [element("span", element("i", class_=f"key part{index}"), _words(part)) for index, part in enumerate(PARTS)]
    keys.append(element("span", element("i", class_="key mark"), "whole step"))
    return element("div", element("p", *keys, class_="keys"), *rows, scale(axis, "ms"), class_="chart")


def _words(part: str) -> str:
    return part.replace("_", " ")


def _sum(parts: Mapping[str, float]) -> str:
    return milliseconds(sum(parts.values())) if parts else MISSING


def _stack(axis: Axis, plan: PlanMeasurement, parts: Mapping[str, float]) -> list[Element]:
    bars, start = [], 0.0
    for index, part in enumerate(PARTS):
        if part not in parts:
            continue
        hint = f"{plan.title}, {_words(part)}: median {milliseconds(parts[part])}, {_spread(plan.timings[part])}"
        left, right = axis.within(start), axis.within(start + parts[part])
        bars.append(
            element(
                "rect",
                element("title", hint),
                x=axis.percent(left),
                width=axis.percent(right - left),
                y="-8",
                height="16",
                class_=f"part{index}",
            )
        )
        start += parts[part]
    hint = f"{plan.title}, whole step: {milliseconds(step(plan))}"
    if max(start, step(plan)) > axis.high:
        return [*bars, beyond(hint)]
    whole = axis.percent(step(plan))
    return [*bars, element("line", element("title", hint), x1=whole, x2=whole, y1="-11", y2="11", class_="mark")]


# What each rank holds and looks up: one bar per rank.

TALL = 30.0  # pixels of the longest bar
WIDEST = 12.0  # per cent of the track that one bar takes at most


def memory_chart(ranked: Sequence[PlanMeasurement]) -> Element:
    """Bytes of tables and optimizer state on each rank."""
    bytes_, unit = byte_unit(_most_memory(ranked))
    return _rank_chart(ranked, [[held / bytes_ for held in plan.memory] for plan in ranked], unit)


def lookup_chart(ranked: Sequence[PlanMeasurement]) -> Element:
    """Ids looked up on each rank in a step."""
    return _rank_chart(ranked, [plan.lookups for plan in ranked], "ids")


def rank_table(ranked: Sequence[PlanMeasurement]) -> Element:
    """The figures of both charts as a table."""
    ranks = max((len(plan.memory) for plan in ranked), default=0)
    bytes_, unit = byte_unit(_most_memory(ranked))
    heads = ("plan", "of each rank", *map(str, range(ranks)))
    lines = []
    for plan in ranked:
        for kind, values in (
            (f"memory, {unit}", [held / bytes_ for held in plan.memory]),
            ("ids a step", plan.lookups),
        ):
            cells = [element("td", three_digits(value)) for value in values]
            name = element("th", *breakable(plan.title), scope="row")
            lines.append(element("tr", name, element("td", kind), *cells))
    head = element("thead", element("tr", *(element("th", text, scope="col") for text in heads)))
    region = _wide(element("table", head, element("tbody", *lines)), "Ranks' figures")
    return element("details", element("summary", "As a table"), region)


def _most_memory(ranked: Sequence[PlanMeasurement]) -> float:
    return max((max(plan.memory, default=0) for plan in ranked), default=0)


def _wide(table: Element, label: str) -> Element:
    """A table that scrolls sideways."""
    return element("div", table, class_="wide", role="region", aria_label=label, tabindex=0)


def _rank_chart(ranked: Sequence[PlanMeasurement], values: Sequence[Sequence[float]], unit: str) -> Element:
    """values: for each plan, one per rank; all bars share a scale."""
    longest = max((max(each, default=0.0) for each in values), default=0.0) or 1.0
    rows = [
        row(number, plan.title, _bars(plan.title, each, longest, unit), _rank_figure(each, unit))
        for number, (plan, each) in enumerate(zip(ranked, values, strict=True), 1)
    ]
    return element("div", *rows, class_="chart ranks")


def _rank_figure(values: Sequence[float], unit: str) -> Element:
    if not values:
        return element("span", MISSING)
    times = element("small", f"{imbalance(values):.2f}{TIMES} mean")
    return element("span", f"{three_digits(max(values))} {unit}", element("br"), times)


def _bars(name: str, values: Sequence[float], longest: float, unit: str) -> Element:
    pitch = min(100 / max(len(values), 1), WIDEST)
    bars = []
    for rank, value in enumerate(values):
        tall = TALL * value / longest
        hint = element("title", f"{name}, rank {rank}: {three_digits(value)} {unit}")
        left = f"{rank * pitch:.3f}%"
        bars.append(element("rect", hint, x=left, y=-tall, width=f"{pitch * 0.84:.3f}%", height=max(tall, 0.5)))
    mean = TALL * sum(values) / max(len(values), 1) / longest
    line = element("line", x1="0", x2=f"{pitch * len(values):.3f}%", y1=-mean, y2=-mean, class_="mean")
    ground = element("line", x1="0", x2="100%", y1="0", y2="0", class_="grid")
    return element("svg", element("svg", ground, *bars, line, y="100%", overflow="visible"), aria_hidden="true")


# Predicted against measured: one scatter plot per cost model, a numbered dot per plan. Lengths are pixels.

WIDTH, HEIGHT = 400.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 40.0


def prediction_charts(ranked: Sequence[PlanMeasurement]) -> Element | None:
    """None if no plan was rated."""
    figures = [
        _scatter(title, found, ranked)
        for title, model in MODELS.items()
        if (found := rank_by_model(ranked, model)) is not None
    ]
    return element("div", *figures, class_="pictures") if figures else None


def _scatter(title: str, found: ModelRanking, ranked: Sequence[PlanMeasurement]) -> Element:
    rated = [ranked[number - 1] for number, *_ in found.points]
    shown = {plan.name for plan in on_scale(rated)}
    fitted = [point for point in found.points if ranked[point[0] - 1].name in shown]
    across = logarithmic([time for _, *both in fitted for time in both])
    up = logarithmic([taken for *_, taken in fitted])
    dots = {
        number: (_x(across, across.within(predicted)), _y(up, up.within(taken)))
        for number, predicted, taken in found.points
    }
    picture = element(
        "svg",
        *_frame(across, up),
        *_diagonal(across, up),
        *(_dot(number, ranked[number - 1], predicted, *dots[number], up) for number, predicted, _ in found.points),
        *numbers(dots, (LEFT, 0, WIDTH, HEIGHT - BOTTOM)),
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        class_="scatter",
        role="img",
        aria_label=f"Predicted against measured, {title}: {found.verdict}",
    )
    return element("figure", element("figcaption", element("b", title), ": " + found.verdict), picture)


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.at(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.at(value) * (HEIGHT - TOP - BOTTOM)


def _frame(across: Axis, up: Axis) -> Iterator[Element]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for tick in across.ticks():
        x = _x(across, tick)
        yield element("line", x1=x, x2=x, y1=TOP, y2=bottom, class_="grid")
        yield element("text", f"{tick:,g}", x=x, y=bottom + 14, text_anchor="middle")
    for tick in up.ticks():
        y = _y(up, tick)
        yield element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid")
        yield element("text", f"{tick:,g}", x=LEFT - 5, y=y + 4, text_anchor="end")
    middle = (LEFT + right) / 2
    yield element("text", "predicted, ms, log", x=middle, y=HEIGHT - 6, text_anchor="middle", class_="title")
    turned = f"translate(11 {(TOP + bottom) / 2:.0f}) rotate(-90)"
    yield element("text", "measured, ms, log", transform=turned, text_anchor="middle", class_="title")


def _diagonal(across: Axis, up: Axis) -> Iterator[Element]:
    """Predicted equals measured."""
    low, high = max(across.low, up.low), min(across.high, up.high)
    if low < high:
        ends = dict(x1=_x(across, low), y1=_y(up, low), x2=_x(across, high), y2=_y(up, high))
        yield element("line", element("title", "predicted = measured"), **ends, class_="right")


def _dot(number: int, plan: PlanMeasurement, predicted: float, x: float, y: float, up: Axis) -> Element:
    """Hollow at the upper edge for a plan that is slower than the axis reaches."""
    hint = f"{number}. {plan.title}: predicted {milliseconds(predicted)}, measured {milliseconds(step(plan))}"
    kind = "dot" if step(plan) <= up.high else "dot hollow"
    return element("circle", element("title", hint), cx=x, cy=y, r=DOT, class_=kind, data_plan=number)


# All figures, in a table that sorts by any column.


@dataclass(frozen=True)
class Column:
    """value: of a plan; None if it has none."""

    group: str
    title: str
    value: Callable[[PlanMeasurement], float | None]


def plan_table(ranked: Sequence[PlanMeasurement]) -> Element:
    """Columns without any value are left out."""
    columns = [column for column in _columns(ranked) if any(column.value(plan) is not None for plan in ranked)]
    groups = [
        element("th", group, colspan=len(list(members)), scope="colgroup")
        for group, members in groupby(columns, key=lambda column: column.group)
    ]
    titles = [_heading(column.title, index) for index, column in enumerate(columns, 2)]
    head = element(
        "thead",
        element("tr", _heading("#", 0, rowspan=2), _heading("plan", 1, rowspan=2), *groups),
        element("tr", *titles),
    )
    tied = [plan.name for plan in tied_with_first(ranked)[1:]]
    rows = [_line(number, plan, columns, _notes(plan, ranked, tied)) for number, plan in enumerate(ranked, 1)]
    return _wide(element("table", head, element("tbody", *rows), class_="sortable"), "All figures")


def _notes(plan: PlanMeasurement, ranked: Sequence[PlanMeasurement], tied: Sequence[str]) -> str:
    same = next((other.title for other in ranked if other is not plan and same_plan(plan, other)), None)
    notes = [f"same plan as {same}"] if same else []
    if plan.dropped is not None:
        notes.append("1 round, dropped")
    return ", ".join([*notes, "tie with the first"] if plan.name in tied else notes)


def _columns(ranked: Sequence[PlanMeasurement]) -> Iterator[Column]:
    for quantile in ("p50", "p10", "p90"):
        yield Column("step, ms", quantile, _timing("step", quantile))
    yield Column("step, ms", "CPU", lambda plan: max(plan.cpu) if plan.cpu else None)
    slowdowns = {plan.name: paired_slowdown(plan.rounds, ranked[0].rounds) for plan in ranked}
    for title, field in (("median", "ratio"), ("from", "low"), ("to", "high")):
        yield Column(f"{TIMES}\N{NO-BREAK SPACE}fastest, by rounds", title, _slowdown(slowdowns, field))
    for part in PARTS:
        yield Column("parts, median ms", _words(part), _timing(part, "p50"))
    bytes_, unit = byte_unit(_most_memory(ranked))
    yield Column(f"memory, {unit}", "least rank", lambda plan: min(plan.memory) / bytes_ if plan.memory else None)
    yield Column(f"memory, {unit}", "most", lambda plan: max(plan.memory) / bytes_ if plan.memory else None)
    yield Column("most / mean", "memory", lambda plan: imbalance(plan.memory) if plan.memory else None)
    yield Column("most / mean", "lookups", lambda plan: imbalance(plan.lookups) if plan.lookups else None)
    for title, model in zip(("TorchRec", "calibrated"), MODELS.values(), strict=True):
        yield Column("predicted step, ms", title, _predicted(model))


def _timing(phase: str, quantile: str) -> Callable[[PlanMeasurement], float | None]:
    return lambda plan: getattr(plan.timings[phase], quantile) if phase in plan.timings else None


def _slowdown(slowdowns: Mapping[str, PairedSlowdown | None], field: str) -> Callable[[PlanMeasurement], float | None]:
    return lambda plan: getattr(slowdowns[plan.name], field, None)


def _predicted(model: Model) -> Callable[[PlanMeasurement], float | None]:
    return lambda plan: prediction.step if (prediction := model(plan)) is not None else None


def _heading(title: str, column: int, rowspan: int | None = None) -> Element:
    """column: index of the cells that it sorts by. The table comes sorted by the median step, column 2."""
    button = element("button", title, type="button", title=f"sort by {title}")
    order = "ascending" if column == 2 else None
    return element("th", button, scope="col", data_column=column, rowspan=rowspan, aria_sort=order)


def _line(number: int, plan: PlanMeasurement, columns: Sequence[Column], notes: str) -> Element:
    figures = []
    for column in columns:
        value = column.value(plan)
        text = MISSING if value is None else three_digits(value)
        figures.append(element("td", text, data_value=value))
    first = element("td", f"{number}", data_value=number)
    name = element("th", *breakable(plan.title), scope="row", data_value=plan.name, data_note=notes or None)
    return element("tr", first, name, *figures, data_plan=number)
