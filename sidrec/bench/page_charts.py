"""Charts of what was clocked: each plan's step with its spread, and the parts of a step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree.ElementTree import Element

from sidrec.bench.page_elements import (
    MISSING,
    MODELS,
    TIMES,
    Axis,
    Model,
    Rated,
    around,
    byte_unit,
    element,
    from_zero,
    logarithmic,
    milliseconds,
    rated,
    row,
    scale,
    step,
    three_digits,
    track,
)
from sidrec.bench.result import PHASES, PlanMeasurement, Timing
from sidrec.bench.summary import PairedSlowdown, imbalance, paired_slowdown


def step_chart(measured: Sequence[PlanMeasurement]) -> Element:
    """A dot with its interval for each plan, pale dots for its rounds. measured: fastest first, at least one."""
    times = [(plan.timings["step"].p10, plan.timings["step"].p90, *plan.rounds) for plan in measured]
    axis = around([time for plan in times for time in plan])
    rows = [
        row(place, plan.name, track(axis, *_interval(axis, plan, measured[0])), milliseconds(step(plan)))
        for place, plan in enumerate(measured, 1)
    ]
    return element("div", *rows, scale(axis, "ms"), class_="chart")


def _interval(axis: Axis, plan: PlanMeasurement, fastest: PlanMeasurement) -> list[Element]:
    timing = plan.timings["step"]
    found = paired_slowdown(plan.rounds, fastest.rounds)
    told = f"{plan.name}: median {milliseconds(timing.p50)}, {_spread(timing)}"
    if plan is not fastest and found is not None:
        told += f"; slower than {fastest.name} in {found.slower} of {found.rounds} rounds"
    low, middle, high = (axis.percent(value) for value in (timing.p10, timing.p50, timing.p90))
    rounds = [element("circle", cx=axis.percent(each), cy="0", r="3", class_="round") for each in plan.rounds]
    return [
        element("line", x1=low, x2=high, y1="0", y2="0", class_="interval"),
        *(element("line", x1=end, x2=end, y1="-4", y2="4", class_="interval") for end in (low, high)),
        *rounds,
        element("circle", cx=middle, cy="0", r="5", class_="median"),
        element("rect", element("title", told), x="0", y="-13", width="100%", height="26", class_="touch"),
    ]


def _spread(timing: Timing) -> str:
    return f"p10 {three_digits(timing.p10)}, p90 {three_digits(timing.p90)}"


def part_chart(measured: Sequence[PlanMeasurement]) -> Element | None:
    """The parts' medians on top of one another, a line where the step's median is. None where no parts were timed."""
    timed = [
        (place, plan, {part: plan.timings[part].p50 for part in PARTS if part in plan.timings})
        for place, plan in enumerate(measured, 1)
    ]
    if not any(parts for *_, parts in timed):
        return None
    axis = from_zero([max(sum(parts.values()), step(plan)) for _, plan, parts in timed])
    rows = [row(place, plan.name, track(axis, *_stack(axis, plan, parts)), _sum(parts)) for place, plan, parts in timed]
    keys = [element("span", element("i", class_=f"key part{index}"), name) for index, name in enumerate(_names())]
    keys.append(element("span", element("i", class_="key mark"), "whole step"))
    return element("div", element("p", *keys, class_="keys"), *rows, scale(axis, "ms"), class_="chart")


def _names() -> list[str]:
    return [part.replace("_", " ") for part in PARTS]


def _sum(parts: dict[str, float]) -> str:
    return milliseconds(sum(parts.values())) if parts else MISSING


def _stack(axis: Axis, plan: PlanMeasurement, parts: dict[str, float]) -> list[Element]:
    bars, begun = [], 0.0
    for index, (part, name) in enumerate(zip(PARTS, _names(), strict=True)):
        if part not in parts:
            continue
        timing = plan.timings[part]
        told = f"{plan.name}, {name}: median {milliseconds(timing.p50)}, {_spread(timing)}"
        bars.append(
            element(
                "rect",
                element("title", told),
                x=axis.percent(begun),
                width=axis.percent(timing.p50),
                y="-8",
                height="16",
                class_=f"part{index}",
            )
        )
        begun += timing.p50
    whole = axis.percent(step(plan))
    title = element("title", f"{plan.name}, whole step: {milliseconds(step(plan))}")
    return [*bars, element("line", title, x1=whole, x2=whole, y1="-11", y2="11", class_="mark")]


# What each rank holds and looks up under each plan: one bar a rank.


TALL = 30.0  # pixels of the longest bar
WIDEST = 12.0  # per cent of the track that one bar takes at most


def memory_chart(measured: Sequence[PlanMeasurement]) -> Element:
    most = max((max(plan.memory, default=0) for plan in measured), default=0)
    bytes_, unit = byte_unit(most)
    return _chart(measured, [[held / bytes_ for held in plan.memory] for plan in measured], unit)


def lookup_chart(measured: Sequence[PlanMeasurement]) -> Element:
    return _chart(measured, [plan.lookups for plan in measured], "ids")


def rank_table(measured: Sequence[PlanMeasurement]) -> Element:
    """The same figures as a table, for who cannot see bars."""
    ranks = max((len(plan.memory) for plan in measured), default=0)
    bytes_, unit = byte_unit(max((max(plan.memory, default=0) for plan in measured), default=0))
    head = element(
        "tr", *(element("th", text, scope="col") for text in ("plan", "of each rank", *map(str, range(ranks))))
    )
    lines = []
    for plan in measured:
        for kind, values in (
            (f"memory, {unit}", [held / bytes_ for held in plan.memory]),
            ("ids a step", plan.lookups),
        ):
            cells = [element("td", three_digits(value)) for value in values]
            lines.append(element("tr", element("th", plan.name, scope="row"), element("td", kind), *cells))
    table = element("table", element("thead", head), element("tbody", *lines))
    region = element("div", table, class_="wide", role="region", aria_label="Ranks' figures", tabindex=0)
    return element("details", element("summary", "As a table"), region)


def _chart(measured: Sequence[PlanMeasurement], values: Sequence[Sequence[float]], unit: str) -> Element:
    """values: [plans][world]; all bars share a scale."""
    longest = max((max(each, default=0.0) for each in values), default=0.0) or 1.0
    rows = [
        row(place, plan.name, _bars(plan.name, each, longest, unit), _rank_figure(each, unit))
        for place, (plan, each) in enumerate(zip(measured, values, strict=True), 1)
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
        told = element("title", f"{name}, rank {rank}: {three_digits(value)} {unit}")
        place = f"{rank * pitch:.3f}%"
        bars.append(element("rect", told, x=place, y=-tall, width=f"{pitch * 0.84:.3f}%", height=max(tall, 0.5)))
    mean = TALL * sum(values) / max(len(values), 1) / longest
    line = element("line", x1="0", x2=f"{pitch * len(values):.3f}%", y1=-mean, y2=-mean, class_="mean")
    ground = element("line", x1="0", x2="100%", y1="0", y2="0", class_="grid")
    return element("svg", element("svg", ground, *bars, line, y="100%", overflow="visible"), aria_hidden="true")


# Predicted against measured: one picture for each cost model, a numbered dot for each plan.
#
# Lengths are pixels of the picture, which a page may stretch.


WIDTH, HEIGHT = 400.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 40.0
DOT = 4.5
LETTER, LINE = 6.6, 12.0  # a digit's width and a label's height
REACHES = (11.0, 19.0, 29.0, 41.0, 55.0)  # how far from its dot a number may stand
WAYS = ((1, 0), (-1, 0), (0, -1), (0, 1), (0.7, -0.7), (-0.7, 0.7), (0.7, 0.7), (-0.7, -0.7))
Box = tuple[float, float, float, float]


def prediction_charts(measured: Sequence[PlanMeasurement]) -> Element | None:
    """None where no plan was rated. measured: fastest first."""
    found = [
        _figure(title, one, measured) for title, model in MODELS.items() if (one := rated(measured, model)) is not None
    ]
    return element("div", *found, class_="pictures") if found else None


def _figure(title: str, one: Rated, measured: Sequence[PlanMeasurement]) -> Element:
    across = logarithmic([time for _, *both in one.points for time in both])
    up = logarithmic([taken for *_, taken in one.points])
    places = {place: (_x(across, expected), _y(up, taken)) for place, expected, taken in one.points}
    dots = [_dot(place, measured[place - 1], expected, *places[place]) for place, expected, _ in one.points]
    picture = element(
        "svg",
        *_frame(across, up),
        *_diagonal(across, up),
        *dots,
        *_numbers(places),
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        class_="scatter",
        role="img",
        aria_label=f"Predicted against measured, {title}: {one.verdict}",
    )
    return element("figure", element("figcaption", element("b", title), ": " + one.verdict), picture)


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
    """Where a prediction would be right."""
    low, high = max(across.low, up.low), min(across.high, up.high)
    if low < high:
        ends = dict(x1=_x(across, low), y1=_y(up, low), x2=_x(across, high), y2=_y(up, high))
        yield element("line", element("title", "predicted = measured"), **ends, class_="right")


def _dot(place: int, plan: PlanMeasurement, expected: float, x: float, y: float) -> Element:
    told = f"{place}. {plan.name}: predicted {milliseconds(expected)}, measured {milliseconds(step(plan))}"
    return element("circle", element("title", told), cx=x, cy=y, r=DOT, class_="dot", data_plan=place)


def _numbers(places: dict[int, tuple[float, float]]) -> Iterator[Element]:
    """Each dot's number, where it covers neither a dot nor another number; left out where there is no such place."""
    taken = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in places.values()]
    for place, (x, y) in places.items():
        half = LETTER * len(str(place)) / 2
        for reach, right, down in _tries(half):
            box = (right + x - half, down + y - LINE / 2, right + x + half, down + y + LINE / 2)
            if _inside(box) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                if reach > REACHES[0]:
                    yield element("line", x1=x, y1=y, x2=x + right * 0.7, y2=y + down * 0.7, class_="leader")
                label = element("text", f"{place}", x=x + right, y=y + down + 4, text_anchor="middle", class_="number")
                label.set("data-plan", f"{place}")
                yield label
                break


def _tries(half: float) -> Iterator[tuple[float, float, float]]:
    """How far, and where from the dot a number's middle would be."""
    for reach in REACHES:
        for right, down in WAYS:
            yield reach, right * (reach + half - LETTER / 2), down * reach


def _inside(box: Box) -> bool:
    return box[0] >= LEFT and box[1] >= 0 and box[2] <= WIDTH and box[3] <= HEIGHT - BOTTOM


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


# All figures of the measured plans, in a table that its reader sorts.


PARTS = [phase for phase in PHASES if phase != "step"]


@dataclass(frozen=True)
class Column:
    """value: of a plan; None where it has none."""

    group: str
    title: str
    value: Callable[[PlanMeasurement], float | None]


def plan_table(measured: Sequence[PlanMeasurement]) -> Element:
    """measured: fastest first, at least one."""
    columns = [one for one in _columns(measured) if any(one.value(plan) is not None for plan in measured)]
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
    rows = [_line(place, plan, columns) for place, plan in enumerate(measured, 1)]
    table = element("table", head, element("tbody", *rows), class_="sortable")
    return element("div", table, class_="wide", role="region", aria_label="All figures", tabindex=0)


def _columns(measured: Sequence[PlanMeasurement]) -> Iterator[Column]:
    for quantile in ("p50", "p10", "p90"):
        yield Column("step, ms", quantile, _timing("step", quantile))
    yield Column("step, ms", "CPU", lambda plan: max(plan.cpu) if plan.cpu else None)
    found = {plan.name: paired_slowdown(plan.rounds, measured[0].rounds) for plan in measured}
    for title, field in (("median", "ratio"), ("from", "low"), ("to", "high")):
        yield Column(f"{TIMES}\N{NO-BREAK SPACE}fastest, by rounds", title, _behind(found, field))
    for part in PARTS:
        yield Column("parts, median ms", part.replace("_", " "), _timing(part, "p50"))
    bytes_, unit = byte_unit(max((max(plan.memory, default=0) for plan in measured), default=0))
    yield Column(f"memory, {unit}", "least rank", lambda plan: min(plan.memory) / bytes_ if plan.memory else None)
    yield Column(f"memory, {unit}", "most", lambda plan: max(plan.memory) / bytes_ if plan.memory else None)
    yield Column("most / mean", "memory", lambda plan: imbalance(plan.memory) if plan.memory else None)
    yield Column("most / mean", "lookups", lambda plan: imbalance(plan.lookups) if plan.lookups else None)
    for title, model in zip(("TorchRec", "calibrated"), MODELS.values(), strict=True):
        yield Column("predicted step, ms", title, _predicted(model))


def _timing(phase: str, quantile: str) -> Callable[[PlanMeasurement], float | None]:
    return lambda plan: getattr(plan.timings[phase], quantile) if phase in plan.timings else None


def _behind(found: Mapping[str, PairedSlowdown | None], field: str) -> Callable[[PlanMeasurement], float | None]:
    return lambda plan: getattr(found[plan.name], field, None)


def _predicted(model: Model) -> Callable[[PlanMeasurement], float | None]:
    return lambda plan: expected.step if (expected := model(plan)) is not None else None


def _heading(title: str, column: int, rowspan: int | None = None) -> Element:
    """column: which cells it sorts by. Plans come sorted by the median step."""
    button = element("button", title, type="button", title=f"sort by {title}")
    order = "ascending" if column == 2 else None
    return element("th", button, scope="col", data_column=column, rowspan=rowspan, aria_sort=order)


def _line(place: int, plan: PlanMeasurement, columns: Sequence[Column]) -> Element:
    figures = []
    for column in columns:
        value = column.value(plan)
        text = MISSING if value is None else three_digits(value)
        figures.append(element("td", text, data_value=value))
    number = element("td", f"{place}", data_value=place)
    name = element("th", plan.name, scope="row", data_value=plan.name)
    return element("tr", number, name, *figures, data_plan=place)
