"""All figures of the measured plans, in a table that its reader sorts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree.ElementTree import Element

from sidrec.bench.behind import Behind, behind
from sidrec.bench.page_element import element
from sidrec.bench.page_numbers import MISSING, TIMES, byte_unit, three_digits
from sidrec.bench.page_standing import MODELS, Model
from sidrec.bench.result import PHASES, PlanMeasurement
from sidrec.bench.table import imbalance

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
    found = {plan.name: behind(plan.rounds, measured[0].rounds) for plan in measured}
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


def _behind(found: Mapping[str, Behind | None], field: str) -> Callable[[PlanMeasurement], float | None]:
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
