"""What each rank holds and looks up under each plan: one bar a rank."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from sidrec.bench.page_axis import row
from sidrec.bench.page_element import element
from sidrec.bench.page_numbers import MISSING, TIMES, byte_unit, three_digits
from sidrec.bench.result import PlanMeasurement
from sidrec.bench.table import imbalance

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
        row(place, plan.name, _bars(plan.name, each, longest, unit), _figure(each, unit))
        for place, (plan, each) in enumerate(zip(measured, values, strict=True), 1)
    ]
    return element("div", *rows, class_="chart ranks")


def _figure(values: Sequence[float], unit: str) -> Element:
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
