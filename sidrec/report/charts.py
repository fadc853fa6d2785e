"""Charts of reports as SVG: lines over steps, a band over deciles, a reliability diagram, bars, intervals.

Lengths are pixels of a picture that is `WIDTH` wide; the page scales it to its column.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from sidrec.page.elements import MARGIN, Axis, element

WIDTH, HEIGHT = 520.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 68.0, 14.0, 8.0, 38.0
MOST_POINTS = 300  # of a line; more are averaged
DOTTED = 40  # points up to which each is a dot with its value
COLOURS = 8

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """points: x and y, ascending by x; None where there is no value."""

    name: str
    points: Sequence[Point]


def spanning(values: Sequence[float], zero: bool = False) -> Axis:
    """A linear axis over all values, with a margin. zero: it begins there. values: at least one."""
    low, high = (0.0 if zero else min(values)), max(values)
    margin = MARGIN * (high - low) or abs(high) * MARGIN or 1.0
    return Axis(low if zero else low - margin, high + margin)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS points, each the mean of consecutive ones."""
    group = math.ceil(len(points) / MOST_POINTS)
    if group <= 1:
        return list(points)
    return [_mean(points[start : start + group]) for start in range(0, len(points), group)]


def _mean(points: Sequence[Point]) -> Point:
    values = [y for _, y in points if y is not None]
    return points[-1][0], sum(values) / len(values) if values else None


class Plot:
    """A picture with axes. Marks are added in the order in which they are drawn."""

    def __init__(self, across: Axis, up: Axis, titles: tuple[str, str], height: float = HEIGHT) -> None:
        """titles: of the x axis and of the y axis."""
        self.across, self.up, self.titles, self.height = across, up, titles, height
        self.marks: list[Element] = []

    def x(self, value: float) -> float:
        return LEFT + self.across.at(value) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - self.up.at(value) * (self.height - TOP - BOTTOM)

    def line(self, points: Sequence[Point], colour: int) -> None:
        """A line with gaps where values are missing; dots with their values if there are few."""
        run: list[str] = []
        for x, y in [*points, (0.0, None)]:
            if y is not None:
                run.append(f"{self.x(x):.1f},{self.y(y):.1f}")
            elif run:
                self.marks.append(element("polyline", points=" ".join(run), class_=f"line c{colour}"))
                run = []
        if len(points) <= DOTTED:
            for x, y in points:
                if y is not None:
                    self.dot(x, y, colour, f"{x:,g}: {y:.5g}")

    def dot(self, x: float, y: float, colour: int, hint: str) -> None:
        """A dot that shows a hint."""
        place = {"cx": self.x(x), "cy": self.y(y)}
        self.marks.append(element("circle", element("title", hint), **place, r=2.6, class_=f"point c{colour}"))

    def picture(self, label: str, ticks: Sequence[tuple[float, str]] | None = None) -> Element:
        """The SVG. ticks: values and texts of the x axis, in place of round values."""
        shown = [(tick, f"{tick:,g}") for tick in self.across.ticks()] if ticks is None else ticks
        return element(
            "svg",
            *self._frame(shown),
            *self.marks,
            viewBox=f"0 0 {WIDTH:.0f} {self.height:.0f}",
            class_="plot",
            role="img",
            aria_label=label,
        )

    def _frame(self, ticks: Sequence[tuple[float, str]]) -> Iterator[Element]:
        bottom, right = self.height - BOTTOM, WIDTH - RIGHT
        for tick in self.up.ticks():
            y = self.y(tick)
            yield element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid")
            yield element("text", f"{tick:,g}", x=LEFT - 5, y=y + 4, text_anchor="end")
        for tick, text in ticks:
            yield element("text", text, x=self.x(tick), y=bottom + 14, text_anchor="middle")
        middle = (LEFT + right) / 2
        yield element("text", self.titles[0], x=middle, y=self.height - 6, text_anchor="middle", class_="title")
        turned = f"translate(11 {(TOP + bottom) / 2:.0f}) rotate(-90)"
        yield element("text", self.titles[1], transform=turned, text_anchor="middle", class_="title")


def figure(title: str, picture: Element, names: Sequence[str] = ()) -> Element:
    """A picture under its title. names: of the series, as a legend."""
    keys = [element("span", element("i", class_=f"key c{number % COLOURS}"), name) for number, name in enumerate(names)]
    legend = element("p", *keys, class_="keys") if keys else None
    return element("figure", element("figcaption", element("b", title)), legend, picture)


def line_chart(
    title: str, series: Sequence[Series], up: str, *, zero: bool = False, marked: Sequence[float] = ()
) -> Element | None:
    """Lines over steps; None without any value. marked: steps with a vertical line."""
    thin = [thinned(each.points) for each in series]
    values = [y for points in thin for _, y in points if y is not None and math.isfinite(y)]
    if not values:
        return None
    steps = [x for points in thin for x, _ in points] + list(marked)
    across = spanning(steps) if len(set(steps)) > 1 else Axis(steps[0] - 1, steps[0] + 1)
    plot = Plot(across, spanning(values, zero), ("step", up))
    for step in marked:
        x = plot.x(step)
        plot.marks.append(element("line", x1=x, x2=x, y1=TOP, y2=plot.height - BOTTOM, class_="skipped"))
    for number, points in enumerate(thin):
        plot.line(points, number % COLOURS)
    names = [each.name for each in series] if len(series) > 1 else []
    return figure(title, plot.picture(f"{title} over steps"), names)


def gate_chart(deciles: dict[str, Any]) -> Element:
    """Mean gate of each decile of exposure, with the interval of the mean and a band of 80% of the rows.

    Items that were never shown, if there are any, stand apart on the left, with 80% of their rows.
    """
    gate, never = deciles["gate"], deciles.get("never_shown")
    places = [float(place) for place in range(len(gate))]
    first = -1.9 if never else -0.4
    plot = Plot(
        Axis(first, max(places) + 0.4), Axis(0.0, 1.0), ("median exposures of the decile's rows", "mean gate g")
    )
    if never:
        x, ends = plot.x(-1.5), {"y1": plot.y(never["lowest_tenth"]), "y2": plot.y(never["highest_tenth"])}
        plot.marks.append(element("line", x1=x, x2=x, **ends, class_="interval"))
        plot.dot(-1.5, never["gate"], 1, f"never shown: {never['gate']:.4f}, {never['rows']:,.0f} rows")
    low, high = deciles.get("lowest_tenth"), deciles.get("highest_tenth")
    if low and high:
        edge = [*zip(places, high, strict=True), *reversed(list(zip(places, low, strict=True)))]
        corners = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in edge)
        plot.marks.append(element("polygon", points=corners, class_="band"))
    for place, mean, half in zip(places, gate, deciles["half_interval"], strict=True):
        x = plot.x(place)
        ends = {"y1": plot.y(max(0.0, mean - half)), "y2": plot.y(min(1.0, mean + half))}
        plot.marks.append(element("line", x1=x, x2=x, **ends, class_="interval"))
    plot.line(list(zip(places, gate, strict=True)), 0)
    ticks = [(place, f"{exposures:,.0f}") for place, exposures in zip(places, deciles["exposures"], strict=True)]
    ticks += [(-1.5, "never")] if never else []
    return plot.picture("Mean gate by exposure", ticks)


@dataclass(frozen=True)
class Bin:
    """Rows of similar predictions. predicted, observed: mean probability, share of positives. low, high: interval of
    the share."""

    predicted: float
    observed: float
    low: float
    high: float
    rows: int


def reliability_chart(bins: Sequence[Bin]) -> Element:
    """Observed against predicted, above bars of the bins' rows. bins: at least one."""
    # Bins of few rows reach far: their intervals do not stretch the axis.
    reach = max(max(each.predicted, each.observed) for each in bins)
    axis = Axis(0.0, min(1.0, reach * 1.1) or 1.0)
    plot = Plot(axis, axis, ("predicted probability", "share of positives"), HEIGHT + 90)
    ends = {"x1": plot.x(0), "y1": plot.y(0), "x2": plot.x(axis.high), "y2": plot.y(axis.high)}
    plot.marks.append(element("line", element("title", "predicted = observed"), **ends, class_="right"))
    most = max(each.rows for each in bins)
    ground = plot.height - BOTTOM
    for each in bins:
        x, tall = plot.x(each.predicted), max(1.0, 60 * each.rows / most)
        hint = f"{each.rows:,} rows: predicted {each.predicted:.4f}, positive {each.observed:.4f}"
        plot.marks.append(
            element("rect", element("title", hint), x=x - 4, width=8, y=ground - tall, height=tall, class_="count")
        )
        span = {"y1": plot.y(axis.within(each.low)), "y2": plot.y(axis.within(each.high))}
        plot.marks.append(element("line", x1=x, x2=x, **span, class_="interval"))
        plot.dot(each.predicted, each.observed, 0, hint)
    return plot.picture("Observed against predicted probability")


def histogram_bars(counts: Sequence[int]) -> Element:
    """A histogram over [0, 1] as a track of a chart row."""
    most = max(counts, default=0) or 1
    width = 100 / max(1, len(counts))
    bars = [
        element(
            "rect",
            element("title", f"{place / len(counts):.2f} to {(place + 1) / len(counts):.2f}: {count:,}"),
            x=f"{place * width:.2f}%",
            width=f"{width * 0.9:.2f}%",
            y=-28.0 * count / most,
            height=max(28.0 * count / most, 0.5),
        )
        for place, count in enumerate(counts)
    ]
    ground = element("line", x1="0", x2="100%", y1="0", y2="0", class_="grid")
    return element("svg", element("svg", ground, *bars, y="100%", overflow="visible"), aria_hidden="true")


def interval_mark(axis: Axis, found: float, low: float, high: float, hint: str) -> list[Element]:
    """A dot with its interval, as marks of a chart row's track."""
    ends = [axis.percent(axis.within(value)) for value in (low, high)]
    return [
        element("line", x1=ends[0], x2=ends[1], y1="0", y2="0", class_="interval"),
        *(element("line", x1=end, x2=end, y1="-4", y2="4", class_="interval") for end in ends),
        element("circle", element("title", hint), cx=axis.percent(axis.within(found)), cy="0", r="5", class_="median"),
    ]
