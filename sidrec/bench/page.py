"""A bench as one HTML file without external resources: summary, conditions, charts, sortable table, predicted costs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from sidrec.bench.page_charts import (
    all_steps_chart,
    lookup_chart,
    memory_chart,
    part_chart,
    plan_table,
    prediction_charts,
    rank_table,
    step_chart,
)
from sidrec.bench.ranking import (
    MISSING,
    MODELS,
    TIMES,
    fastest_first,
    headline,
    milliseconds,
    on_scale,
    rank_by_model,
    three_digits,
    unmeasured,
)
from sidrec.bench.result import BenchResult, PlanMeasurement
from sidrec.io.files import replaced_file
from sidrec.io.output_folders import output_file
from sidrec.page.cards import card
from sidrec.page.elements import Axis, breakable, byte_unit, element, from_zero, is_titled, page

TITLE = "Sharding plans, measured: "


def is_page(path: Path) -> bool:
    """Whether a file is the page of a bench."""
    return is_titled(path, TITLE)


def write_page(result: BenchResult, path: Path) -> None:
    """Writes the page, or replaces an older one. Raises ContractError if another kind of file is there."""
    path = output_file(path, "the page of a bench", is_page)
    content = _page(result)
    with replaced_file(path) as partial:
        partial.write_bytes(content)


def _page(result: BenchResult) -> bytes:
    ranked = fastest_first(result)
    main = [*_summary(result, ranked), conditions(result), *_body(result, ranked)]
    script = (files("sidrec.bench") / "page.js").read_text(encoding="utf-8")
    return page(f"{TITLE}{result.workload.get('name', 'unnamed workload')}", main, script=script)


def _summary(result: BenchResult, ranked: Sequence[PlanMeasurement]) -> Iterator[Element]:
    """The findings in sentences."""
    if not result.complete:
        yield element(
            "p", "This bench was interrupted. The page shows what it had measured until then.", class_="warning"
        )
    if not ranked:
        yield element("p", "No plan was measured.", class_="warning")
        return
    lead, *identical = headline(ranked)
    yield element("p", lead, class_="lead")
    yield from (element("p", sentence) for sentence in identical)
    for title, model in MODELS.items():
        found = rank_by_model(ranked, model)
        if found is not None:
            yield element("p", f"{title}: {found.verdict}")
    missing = len(result.plans) - len(ranked)
    if missing:
        yield element("p", f"Not measured: {missing} of {len(result.plans)} plans; the reasons are below the figures.")


def _body(result: BenchResult, ranked: Sequence[PlanMeasurement]) -> Iterator[Element]:
    if ranked:
        yield _section(
            "Step",
            "Dot: median of all timed steps of the slowest rank; line: p10 to p90; pale dots: median of each round. "
            f"tie: not shown to be slower than the first plan.{_off_scale(ranked)}",
            element("div", step_chart(ranked), all_steps_chart(ranked)),
        )
        yield _section(
            "All figures",
            "Click on a heading to sort. CPU: CPU time of a step on the rank with the most; other load on the machine "
            "affects it less. By rounds: over the fastest plan's step in the same round, median and 95% bootstrap "
            "interval; an interval that contains 1 is a tie. Parts: from separate steps, see below. Memory: tables and "
            "their optimizer state.",
            plan_table(ranked),
        )
    others = unmeasured(result)
    if others:
        lines = [part for plan, why in others for part in (element("dt", plan.title), element("dd", why))]
        yield element("section", element("h2", "Not measured"), element("dl", *lines, class_="failed"))
    if ranked:
        yield from _charts(result, ranked)


def _charts(result: BenchResult, ranked: Sequence[PlanMeasurement]) -> Iterator[Element]:
    yield _section(
        "Parts of a step",
        "Medians. Parts are timed in separate steps, in which all ranks wait for each other after each part: their sum "
        "may exceed the whole step. Backward includes the update of the tables and the communication of gradients."
        + _off_scale(ranked),
        part_chart(ranked) or element("p", "No parts were timed."),
    )
    hollow = " Hollow dots at the upper edge are slower than the axis reaches." if _off_scale(ranked) else ""
    yield _section(
        "Predicted against measured",
        f"Numbers are those of the plans above. On the dashed line a prediction is right.{hollow}",
        prediction_charts(ranked) or element("p", "No plan has predictions."),
    )
    halves = (
        element("div", element("h3", "Tables and optimizer state"), memory_chart(ranked)),
        element("div", element("h3", "Ids looked up in a step"), lookup_chart(ranked)),
    )
    both = element("div", element("div", *halves, class_="halves"), rank_table(ranked))
    yield _section("Load of each rank", "One bar per rank, from rank 0; dashed: the mean.", both)
    yield _section(
        "Predicted cost of each table",
        "Full colour, and first figure: milliseconds on the rank where a table costs most; pale, and second figure: on "
        "all ranks together. Each cost model's bars have their own scale.",
        cost_tables([*ranked, *(plan for plan, _ in unmeasured(result))]) or element("p", "No plan has predictions."),
    )


def _off_scale(ranked: Sequence[PlanMeasurement]) -> str:
    """A sentence on the arrows of plans beyond the axes, if there are any."""
    return " An arrow marks plans slower than the axis reaches." if len(on_scale(ranked)) < len(ranked) else ""


def _section(title: str, note: str, content: Element) -> Element:
    return element("section", element("h2", title), element("p", note, class_="note"), content)


# Conditions: hardware, workload and conditions of the result, in readable units.


def conditions(result: BenchResult) -> Element:
    """One card each for hardware, workload and conditions."""
    done = max((len(plan.rounds) for plan in result.plans), default=0)
    rounds = {"rounds": f"{done} of {result.rounds_wanted}"}
    parts = {
        "Hardware": _in_units(result.hardware),
        "Workload": result.workload,
        "Conditions": {**rounds, **result.conditions},
    }
    return element("div", *(card(title, values) for title, values in parts.items()), class_="cards")


def _in_units(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes and bytes per second of `sidrec.plans.hardware.Hardware` with units."""
    return {key: UNITS[key](value) if key in UNITS and _is_number(value) else value for key, value in hardware.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bytes(value: float) -> str:
    size, unit = byte_unit(value)
    return f"{three_digits(value / size)} {unit}"


def _rate(value: float) -> str:
    return f"{three_digits(value / 1e9)} GB/s"


UNITS: dict[str, Callable[[float], str]] = {
    "hbm": _bytes,
    "ddr": _bytes,
    **dict.fromkeys(("hbm_bandwidth", "ddr_bandwidth", "host_link", "intra_bandwidth", "inter_bandwidth"), _rate),
}


# The predicted cost of each table under one plan, which the reader selects.

SHOWN = 40  # tables of a plan, the costliest ones; the others share one line


def cost_tables(plans: Sequence[PlanMeasurement]) -> Element | None:
    """A select box and a table per plan; the script shows one of them. None if no plan was rated."""
    rated = [plan for plan in plans if plan.default is not None or plan.calibrated is not None]
    if not rated:
        return None
    options = [element("option", plan.title, value=index) for index, plan in enumerate(rated)]
    choice = element("label", "Plan ", element("select", *options, id="plan-of-costs"), class_="choice")
    return element("div", choice, *(_cost_section(index, plan) for index, plan in enumerate(rated)))


def _cost_section(index: int, plan: PlanMeasurement) -> Element:
    predictions = {title: found for title, model in MODELS.items() if (found := model(plan)) is not None}
    costs = [prediction.tables for prediction in predictions.values()]
    leading = next((tables for tables in reversed(costs) if tables), {})  # the calibrated model's, if it has any
    order = sorted(leading, key=lambda table: -sum(leading[table]))
    axes = [from_zero([sum(spent) for spent in tables.values()]) for tables in costs]
    lines = []
    for table in order[:SHOWN]:
        cells = [_cost(tables.get(table), axis) for tables, axis in zip(costs, axes, strict=True)]
        lines.append(_line(table, _layout(plan, table), cells))
    if others := order[SHOWN:]:
        sums = [[_figure(_together([tables[table] for table in others if table in tables]))] for tables in costs]
        lines.append(_line(f"{len(others)} others", "together", sums))
    steps: list[list[Element | str]] = [[milliseconds(prediction.step)] for prediction in predictions.values()]
    foot = element("tfoot", _line("all", "slowest rank's step", steps))
    heads = element("tr", *(element("th", title, scope="col") for title in ("table", *predictions)))
    figures = element("table", element("thead", heads), element("tbody", *lines), foot, class_="costs")
    region = element("div", figures, class_="wide", role="region", aria_label=f"Tables of {plan.title}", tabindex=0)
    return element("section", element("h3", plan.title), region, class_="of-plan", data_index=index)


def _line(title: str, layout: str, cells: Sequence[Sequence[Element | str]]) -> Element:
    head = element("th", *breakable(title), element("small", layout), scope="row")
    return element("tr", head, *(element("td", *cell) for cell in cells))


def _cost(spent: Sequence[float] | None, axis: Axis) -> list[Element | str]:
    """A pale bar for the milliseconds of all ranks, a bar in full colour for the costliest rank's, and both figures."""
    if not spent:
        return [_figure([])]
    bar = element(
        "svg",
        element("rect", width=axis.percent(sum(spent)), height="100%", class_="all"),
        element("rect", width=axis.percent(max(spent)), height="100%", class_="most"),
        class_="bar",
        aria_hidden="true",
    )
    return [bar, _figure(spent)]


def _figure(spent: Sequence[float]) -> Element:
    if not spent:
        return element("span", MISSING)
    most = f"{three_digits(max(spent))} of " if len(spent) > 1 else ""
    return element("span", f"{most}{milliseconds(sum(spent))}")


def _together(costs: Sequence[Sequence[float]]) -> list[float]:
    """[tables][world] -> [world]"""
    return [sum(spent) for spent in zip(*costs, strict=True)]


def _layout(plan: PlanMeasurement, table: str) -> str:
    """From the plan's file."""
    for tables in plan.plan.get("tables", {}).values():
        if table in tables:
            layout = tables[table]
            ranks = layout["ranks"]
            on = f"rank {ranks[0]}" if len(ranks) == 1 else f"{len(set(ranks))} ranks"
            size = f"{layout['rows']:,} {TIMES} {layout['width']}"
            return f"{size}: {layout['sharding_type']}, {layout['compute_kernel']}, {on}"
    return "layout unknown"
