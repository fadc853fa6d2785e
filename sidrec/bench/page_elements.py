"""HTML and SVG as elements: what comes from a result is text, and never taken for markup."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, tostring

from matplotlib.ticker import MaxNLocator

from sidrec.bench.calibrate import Accuracy, accuracy
from sidrec.bench.result import BenchResult, PlanMeasurement, Prediction, measured_plans

Content = Element | str


def element(tag: str, *content: Content | None, **attributes: str | float | None) -> Element:
    """What is None is left out. Attributes: `class_` for class, `aria_label` for aria-label, and so on."""
    made = Element(tag, {_attribute(name): _value(value) for name, value in attributes.items() if value is not None})
    for part in content:
        if isinstance(part, Element):
            made.append(part)
        elif part is not None and len(made):
            made[-1].tail = (made[-1].tail or "") + part
        elif part is not None:
            made.text = (made.text or "") + part
    return made


def document(root: Element) -> bytes:
    """The file's content, UTF-8. Half a surrogate pair, which JSON may hold, becomes a question mark."""
    text: str = tostring(root, encoding="unicode", method="html")
    return ("<!doctype html>\n" + text + "\n").encode("utf-8", "replace")


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


# Figures as text: three digits, one unit for all that stand together.


MISSING = "–"  # noqa: RUF001  # an en dash, as tables have it
TIMES = "×"  # noqa: RUF001  # the sign, not the letter
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def three_digits(value: float | None) -> str:
    """0.0123, 1.23, 12.3, 123, 1,230; a dash for None and for what is not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    magnitude = int(f"{value:.2e}".partition("e")[2])  # of the rounded value: 9.999 is 10.0
    if magnitude < -4:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - magnitude)}f}"


def milliseconds(value: float | None) -> str:
    text = three_digits(value)
    return text if text == MISSING else f"{text} ms"


def percent(share: float) -> str:
    """12% for 0.12; one decimal below 10%."""
    return f"{100 * share:.1f}%" if abs(share) < 0.0995 else f"{100 * share:,.0f}%"


def byte_unit(largest: float) -> tuple[float, str]:
    """Bytes of the unit in which `largest` is at least 1, and its name."""
    power = 0 if largest < 1 else min(len(UNITS) - 1, int(math.log2(largest) // 10))
    return 1024.0**power, UNITS[power]


# Axes of the page's charts, and the rows that share one: a name, a track as wide as there is room, a figure.
#
# Tracks are SVG in per cent of their width, so that their texts keep their size on any screen.


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


# What the page's parts tell alike: plans by their measured step, and what each cost model is worth.


Model = Callable[[PlanMeasurement], Prediction | None]


MODELS: dict[str, Model] = {
    "TorchRec's cost model": lambda plan: plan.default,
    "Calibrated cost model": lambda plan: plan.calibrated,
}


def step(plan: PlanMeasurement) -> float:
    """Median milliseconds of a measured plan's step."""
    return plan.timings["step"].p50


def by_step(result: BenchResult) -> list[PlanMeasurement]:
    """The measured plans, fastest first: a plan's place here is its number on the page."""
    return sorted(measured_plans(result), key=step)


def unmeasured(result: BenchResult) -> list[tuple[PlanMeasurement, str]]:
    """The other plans, and why they are."""
    timed = {plan.name for plan in measured_plans(result)}
    return [(plan, plan.failed or "No round was done.") for plan in result.plans if plan.name not in timed]


@dataclass(frozen=True)
class Rated:
    """Measured plans that a cost model rated: their places, and predicted and measured milliseconds.

    choice: the plan that the model likes best. fastest: the one that was.
    """

    points: list[tuple[int, float, float]]
    accuracy: Accuracy
    choice: PlanMeasurement
    fastest: PlanMeasurement

    @property
    def verdict(self) -> str:
        """How far the model is right, and what following it would have cost."""
        off = f"median error {percent(self.accuracy.error)}"
        if len(self.points) == 1:
            return f"{off}; it rated {self.choice.name} only."
        found = self.accuracy.spearman
        order = "Spearman not defined" if found is None else f"Spearman {found:.2f}"
        choice = f"it likes best what was the fastest, {self.choice.name}"
        if self.choice is not self.fastest:
            more = percent(self.accuracy.regret)
            choice = f"it likes best {self.choice.name}, which took {more} longer than {self.fastest.name}"
        return f"{order} over {len(self.points)} plans; {off}; {choice}."


def rated(plans: Sequence[PlanMeasurement], model: Model) -> Rated | None:
    """plans: `by_step`. None for a model that rated none of them."""
    found = [
        (place, plan, expected.step)
        for place, plan in enumerate(plans, 1)
        if (expected := model(plan)) is not None and math.isfinite(expected.step) and expected.step > 0
    ]
    if not found:
        return None
    return Rated(
        points=[(place, expected, step(plan)) for place, plan, expected in found],
        accuracy=accuracy([expected for *_, expected in found], [step(plan) for _, plan, _ in found]),
        choice=min(found, key=lambda one: one[2])[1],
        fastest=found[0][1],
    )
