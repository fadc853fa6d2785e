"""What the cost models expect of each table under one plan, the plan chosen by the reader."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from sidrec.bench.page_axis import Axis, from_zero
from sidrec.bench.page_element import element
from sidrec.bench.page_numbers import MISSING, TIMES, milliseconds, three_digits
from sidrec.bench.page_standing import MODELS
from sidrec.bench.result import PlanMeasurement

SHOWN = 40  # tables of a plan, the costliest; the others are one line together


def cost_tables(plans: Sequence[PlanMeasurement]) -> Element | None:
    """A select box, and under it the tables of one plan; without a script, of all. None where no plan was rated."""
    rated = [plan for plan in plans if plan.default is not None or plan.calibrated is not None]
    if not rated:
        return None
    options = [element("option", plan.name, value=index) for index, plan in enumerate(rated)]
    choice = element("label", "Plan ", element("select", *options, id="plan-of-costs"), class_="choice")
    return element("div", choice, *(_section(index, plan) for index, plan in enumerate(rated)))


def _section(index: int, plan: PlanMeasurement) -> Element:
    rated = {title: one for title, model in MODELS.items() if (one := model(plan)) is not None}
    costs = [one.tables for one in rated.values()]
    leading = next((tables for tables in reversed(costs) if tables), {})  # the calibrated model's, where it has any
    order = sorted(leading, key=lambda table: -sum(leading[table]))
    axes = [from_zero([sum(spent) for spent in tables.values()]) for tables in costs]
    lines = []
    for table in order[:SHOWN]:
        cells = [_cost(tables.get(table), axis) for tables, axis in zip(costs, axes, strict=True)]
        lines.append(_line(table, _layout(plan, table), cells))
    if others := order[SHOWN:]:
        sums = [[_told(_together([tables[table] for table in others if table in tables]))] for tables in costs]
        lines.append(_line(f"{len(others)} others", "together", sums))
    steps: list[list[Element | str]] = [[milliseconds(one.step)] for one in rated.values()]
    foot = element("tfoot", _line("all", "slowest rank's step", steps))
    head = element("thead", element("tr", *(element("th", title, scope="col") for title in ("table", *rated))))
    figures = element("table", head, element("tbody", *lines), foot, class_="costs")
    region = element("div", figures, class_="wide", role="region", aria_label=f"Tables of {plan.name}", tabindex=0)
    return element("section", element("h3", plan.name), region, class_="of-plan", data_index=index)


def _line(title: str, told: str, cells: Sequence[Sequence[Element | str]]) -> Element:
    head = element("th", title, element("small", told), scope="row")
    return element("tr", head, *(element("td", *cell) for cell in cells))


def _cost(spent: Sequence[float] | None, axis: Axis) -> list[Element | str]:
    """A bar of all ranks' milliseconds, pale, the costliest rank's in full colour."""
    if not spent:
        return [_told([])]
    bar = element(
        "svg",
        element("rect", width=axis.percent(sum(spent)), height="100%", class_="all"),
        element("rect", width=axis.percent(max(spent)), height="100%", class_="most"),
        class_="bar",
        aria_hidden="true",
    )
    return [bar, _told(spent)]


def _told(spent: Sequence[float]) -> Element:
    if not spent:
        return element("span", MISSING)
    most = f"{three_digits(max(spent))} of " if len(spent) > 1 else ""
    return element("span", f"{most}{milliseconds(sum(spent))}")


def _together(costs: Sequence[Sequence[float]]) -> list[float]:
    """[tables][world] -> [world]"""
    return [sum(spent) for spent in zip(*costs, strict=True)]


def _layout(plan: PlanMeasurement, table: str) -> str:
    """As the plan's file has it."""
    for tables in plan.plan.get("tables", {}).values():
        if table in tables:
            layout = tables[table]
            held = layout["ranks"]
            ranks = f"rank {held[0]}" if len(held) == 1 else f"{len(set(held))} ranks"
            size = f"{layout['rows']:,} {TIMES} {layout['width']}"
            return f"{size}: {layout['sharding_type']}, {layout['compute_kernel']}, {ranks}"
    return "layout not known"
