"""Charts of what was clocked: each plan's step with its spread, and the parts of a step."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from sidrec.bench.behind import behind
from sidrec.bench.page_axis import Axis, around, from_zero, row, scale, track
from sidrec.bench.page_element import element
from sidrec.bench.page_numbers import MISSING, milliseconds, three_digits
from sidrec.bench.page_standing import step
from sidrec.bench.page_table import PARTS
from sidrec.bench.result import PlanMeasurement, Timing


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
    found = behind(plan.rounds, fastest.rounds)
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
