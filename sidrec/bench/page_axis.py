"""Axes of the page's charts, and the rows that share one: a name, a track as wide as there is room, a figure.

Tracks are SVG in per cent of their width, so that their texts keep their size on any screen.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from matplotlib.ticker import MaxNLocator

from sidrec.bench.page_element import Content, element

LOG_FROM = 25  # the largest over the smallest value from which an axis is logarithmic
MARGIN = 0.03  # of an axis that does not begin at zero, on either side
EDGE = 6.0  # per cent of a track: ticks nearer to its ends are labelled inwards


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def percent(self, value: float) -> str:
        return f"{100 * self.at(value):.2f}%"

    def ticks(self) -> list[float]:
        """At most seven round values between both ends."""
        if self.log:
            for factors in ((1, 2, 5), (1, 3), (1,)):
                found = [tick for tick in self._powers(factors) if self.low <= tick <= self.high]
                if 3 <= len(found) <= 6:
                    return found
        steps = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        return [float(tick) for tick in steps if self.low <= tick <= self.high]

    def _powers(self, factors: Sequence[int]) -> list[float]:
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        return [factor * 10.0**exponent for exponent in exponents for factor in factors]


def from_zero(values: Iterable[float]) -> Axis:
    """For bars, whose lengths are compared."""
    return Axis(0.0, max(values, default=0.0) or 1.0)


def around(values: Sequence[float]) -> Axis:
    """For dots, whose places are compared: logarithmic over a wide range, from zero if that costs less than half.

    values: at least one, above zero.
    """
    low, high = min(values), max(values)
    if high / low >= LOG_FROM:
        return logarithmic(values)
    if low < high / 2:
        return from_zero([high * (1 + MARGIN)])
    margin = max(MARGIN * (high - low), 0.005 * high)
    return Axis(low - margin, high + margin)


def logarithmic(values: Sequence[float]) -> Axis:
    """For factors, which are compared. values: at least one, above zero."""
    low, high = min(values), max(values)
    margin = max((high / low) ** MARGIN, 1 + MARGIN)
    return Axis(low / margin, high * margin, log=True)


def track(axis: Axis, *marks: Element) -> Element:
    """A row's picture; marks are drawn about y = 0, its middle. Who cannot see it has the figures in the tables."""
    lines = [
        element("line", x1=axis.percent(tick), x2=axis.percent(tick), y1="0", y2="100%", class_="grid")
        for tick in axis.ticks()
    ]
    middle = element("svg", *marks, y="50%", overflow="visible")
    return element("svg", *lines, middle, aria_hidden="true")


def row(number: int | None, name: str, picture: Element, *figures: Content) -> Element:
    """number: the plan's place, by which the page's script lights it up everywhere."""
    place = None if number is None else element("span", f"{number}", class_="place")
    label = element("span", place, element("span", name), class_="name")
    figure = element("span", *figures, class_="figure")
    return element("div", label, element("div", picture, class_="track"), figure, class_="row", data_plan=number)


def scale(axis: Axis, unit: str) -> Element:
    """The last row of a chart: its axis."""
    texts = [
        element("text", f"{tick:,g}", x=axis.percent(tick), y="12", text_anchor=_anchor(100 * axis.at(tick)))
        for tick in axis.ticks()
    ]
    picture = element("svg", *texts, class_="scale", aria_hidden="true")
    kind = f"{unit}, log" if axis.log else unit
    return element("div", element("span", class_="name"), picture, element("span", kind, class_="figure"), class_="row")


def _anchor(percent: float) -> str:
    return "start" if percent < EDGE else "end" if percent > 100 - EDGE else "middle"
