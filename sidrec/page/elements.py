"""HTML and SVG elements of pages: the document, escaped text, axes, and chart rows that share an axis.

What comes from files is text and is never parsed as markup. Tracks of charts are SVG in per cent of their width, so
that their texts keep their size on any screen.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from re import split
from xml.etree.ElementTree import Element, tostring

from matplotlib.ticker import MaxNLocator

Content = Element | str


def element(tag: str, *content: Content | None, **attributes: str | float | None) -> Element:
    """An element; None is left out. Attributes: `class_` for class, `aria_label` for aria-label, and so on."""
    made = Element(tag, {_attribute(name): _value(value) for name, value in attributes.items() if value is not None})
    for part in content:
        if isinstance(part, Element):
            made.append(part)
        elif part is not None and len(made):
            made[-1].tail = (made[-1].tail or "") + part
        elif part is not None:
            made.text = (made.text or "") + part
    return made


POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy: a page loads nothing."""


def page(title: str, main: Iterable[Element], *, style: str = "", script: str | None = None) -> bytes:
    """A whole page without external resources, as the content of a file. style: CSS in addition to page.css."""
    css = (files("sidrec.page") / "page.css").read_text(encoding="utf-8") + style
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", css),
    )
    end = None if script is None else element("script", script)
    body = element("body", element("main", element("h1", title), *main), end)
    return document(element("html", head, body, lang="en"))


def is_titled(path: Path, title: str) -> bool:
    """Whether a file is a page whose title begins with `title`."""
    with path.open("rb") as file:
        return f"<title>{title}".encode() in file.read(2048)


def document(root: Element) -> bytes:
    """The file's content, UTF-8. Lone surrogates, which JSON may hold, become question marks."""
    text: str = tostring(root, encoding="unicode", method="html")
    return ("<!doctype html>\n" + text + "\n").encode("utf-8", "replace")


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


LONGEST_NAME = 20  # letters of one of several names, from which it may be broken


def breakable(name: str) -> Iterator[Content]:
    """A name that lines may break after `_`, `/`, `.` and `-` only; several names of a plan, between them."""
    if " = " in name and max(map(len, name.split())) <= LONGEST_NAME:
        yield name
        return
    for index, part in enumerate(split(r"(?<=[_/.\-])", name)):
        if index:
            yield element("wbr")
        yield part


UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def byte_unit(largest: float) -> tuple[float, str]:
    """The largest unit of which `largest` is at least one, in bytes, and its name: one unit for a whole chart."""
    power = 0 if largest < 1 else min(len(UNITS) - 1, int(math.log2(largest) // 10))
    return 1024.0**power, UNITS[power]


# Axes.

LOG_FROM = 25  # ratio of the largest to the smallest value from which an axis is logarithmic
MARGIN = 0.03  # of an axis that does not begin at zero, on either side
EDGE = 6.0  # per cent of a track: ticks nearer to its ends are labelled inwards


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Position of a value: 0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def percent(self, value: float) -> str:
        """The position as an SVG length."""
        return f"{100 * self.at(value):.2f}%"

    def within(self, value: float) -> float:
        """The value, or the nearer end of the axis."""
        return min(max(value, self.low), self.high)

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
    """For bars, which are compared by length."""
    return Axis(0.0, max(values, default=0.0) or 1.0)


def around(values: Sequence[float]) -> Axis:
    """For dots: logarithmic over a wide range; from zero if that costs less than half of the axis.

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
    """For values that are compared by ratio. values: at least one, above zero."""
    low, high = min(values), max(values)
    margin = max((high / low) ** MARGIN, 1 + MARGIN)
    return Axis(low / margin, high * margin, log=True)


# Chart rows: a name, a track as wide as possible, a figure.


def row(number: int | None, name: str, picture: Element, *figures: Content) -> Element:
    """number: the plan's, by which the page's script highlights it in every section."""
    label = None if number is None else element("span", f"{number}", class_="place")
    named = element("span", label, element("span", *breakable(name)), class_="name")
    figure = element("span", *figures, class_="figure")
    return element("div", named, element("div", picture, class_="track"), figure, class_="row", data_plan=number)


def track(axis: Axis, *marks: Element) -> Element:
    """A row's picture. Marks are drawn around y = 0, its middle. Screen readers skip it and read the tables."""
    lines = [
        element("line", x1=axis.percent(tick), x2=axis.percent(tick), y1="0", y2="100%", class_="grid")
        for tick in axis.ticks()
    ]
    middle = element("svg", *marks, y="50%", overflow="visible")
    return element("svg", *lines, middle, aria_hidden="true")


def beyond(message: str) -> Element:
    """An arrow at the right end of a track, for values beyond its axis."""
    return element("text", element("title", message), "▶", x="100%", y="5", text_anchor="end", class_="beyond")


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
