"""Predicted against measured: one picture for each cost model, a numbered dot for each plan.

Lengths are pixels of the picture, which a page may stretch.
"""

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

from sidrec.bench.page_axis import Axis, logarithmic
from sidrec.bench.page_element import element
from sidrec.bench.page_numbers import milliseconds
from sidrec.bench.page_standing import MODELS, Rated, rated, step
from sidrec.bench.result import PlanMeasurement

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
