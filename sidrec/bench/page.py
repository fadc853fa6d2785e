"""A bench as one HTML file that needs nothing else: conditions, a table to sort, and charts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from sidrec.bench.page_charts import (
    lookup_chart,
    memory_chart,
    part_chart,
    plan_table,
    prediction_charts,
    rank_table,
    step_chart,
)
from sidrec.bench.page_elements import (
    MISSING,
    MODELS,
    TIMES,
    Axis,
    by_step,
    byte_unit,
    document,
    element,
    from_zero,
    milliseconds,
    percent,
    rated,
    step,
    three_digits,
    unmeasured,
)
from sidrec.bench.result import BenchResult, PlanMeasurement
from sidrec.bench.summary import paired_slowdown
from sidrec.io.output_folders import output_file

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a browser may load for the page: nothing."""
TITLE = "Sharding plans, measured: "


def is_page(path: Path) -> bool:
    """Whether a file is the page of a bench."""
    with path.open("rb") as file:
        return f"<title>{TITLE}".encode() in file.read(2048)


def write_page(result: BenchResult, path: Path) -> None:
    """Writes `result` as a page for people, also on paper; a page that is there is replaced.

    Raises OSError where `path` cannot be written, and ContractError where another file is there.
    """
    path = output_file(path, "the page of a bench", is_page)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(document(_page(result)))
    partial.replace(path)


def _page(result: BenchResult) -> Element:
    title = f"{TITLE}{result.workload.get('name', 'unnamed workload')}"
    assets = files("sidrec.bench")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", (assets / "page.css").read_text(encoding="utf-8")),
    )
    measured = by_step(result)
    main = element(
        "main", element("h1", title), *_summary(result, measured), conditions(result), *_body(result, measured)
    )
    script = element("script", (assets / "page.js").read_text(encoding="utf-8"))
    return element("html", head, element("body", main, script), lang="en")


def _summary(result: BenchResult, measured: Sequence[PlanMeasurement]) -> Iterator[Element]:
    """What there is to know, in sentences."""
    if not result.complete:
        yield element(
            "p", "This bench did not come to its end: what follows is what it had measured.", class_="warning"
        )
    if not measured:
        yield element("p", "No plan was measured.", class_="warning")
        return
    yield element("p", *_fastest(measured), class_="lead")
    for title, model in MODELS.items():
        one = rated(measured, model)
        if one is not None:
            yield element("p", f"{title}: {one.verdict}")
    missing = len(result.plans) - len(measured)
    if missing:
        yield element("p", f"Not measured: {missing} of {len(result.plans)} plans; the reasons are below the figures.")


def _fastest(measured: Sequence[PlanMeasurement]) -> Iterator[Element | str]:
    first, timing = measured[0], measured[0].timings["step"]
    yield from ("Fastest: ", element("b", first.name), f", {milliseconds(step(first))} a step")
    yield f" (p10 {three_digits(timing.p10)}, p90 {three_digits(timing.p90)})."
    if len(measured) > 1:
        more = percent(step(measured[1]) / step(first) - 1)
        found = paired_slowdown(measured[1].rounds, first.rounds)
        often = "" if found is None else f", slower in {found.slower} of {found.rounds} rounds"
        yield f" Next: {measured[1].name}, {more} longer{often}."


def _body(result: BenchResult, measured: Sequence[PlanMeasurement]) -> Iterator[Element]:
    if measured:
        yield _section(
            "Step",
            "Median of all timed steps, of each the slowest rank's; line: p10 to p90; pale: median of each round.",
            step_chart(measured),
        )
        yield _section(
            "All figures",
            "A click on a heading sorts by it. CPU: a step's CPU time on the rank that spends most, which other work "
            "on the machine disturbs less. By rounds: over the fastest plan's step in the same round, median and 95% "
            "of its bootstrap draws. Parts: steps of their own, see below. Memory: tables and their optimizer state.",
            plan_table(measured),
        )
    others = unmeasured(result)
    if others:
        lines = [part for plan, why in others for part in (element("dt", plan.name), element("dd", why))]
        yield element("section", element("h2", "Not measured"), element("dl", *lines, class_="failed"))
    if measured:
        yield from _charts(result, measured)


def _charts(result: BenchResult, measured: Sequence[PlanMeasurement]) -> Iterator[Element]:
    yield _section(
        "Parts of a step",
        "Medians. Parts are timed in steps of their own, with all ranks waiting for each other after each part: "
        "their sum may exceed the whole step. Backward holds the tables' update and the gradients' communication.",
        part_chart(measured) or element("p", "No parts were timed."),
    )
    yield _section(
        "Predicted against measured",
        "Numbers: places by measured step. On the dashed line a prediction is right.",
        prediction_charts(measured) or element("p", "No plan has predictions."),
    )
    halves = (
        element("div", element("h3", "Tables and optimizer state"), memory_chart(measured)),
        element("div", element("h3", "Ids looked up in a step"), lookup_chart(measured)),
    )
    both = element("div", element("div", *halves, class_="halves"), rank_table(measured))
    yield _section("Load of each rank", "One bar a rank, from rank 0; dashed: the mean.", both)
    yield _section(
        "Predicted cost of each table",
        "Full colour, and first: milliseconds on the rank where a table costs most; pale, and second: on all ranks "
        "together. Each cost model's bars have a scale of their own.",
        cost_tables([*measured, *(plan for plan, _ in unmeasured(result))]) or element("p", "No plan has predictions."),
    )


def _section(title: str, told: str, content: Element) -> Element:
    return element("section", element("h2", title), element("p", told, class_="told"), content)


# Under which conditions a bench measured: whatever its result says of them, in readable units.


LONG = 400  # letters from which a condition is folded away
LINE = 80  # letters of it that stay in sight
DEPTH = 2  # of mappings within mappings that are laid out; deeper ones become one line


def conditions(result: BenchResult) -> Element:
    done = max((len(plan.rounds) for plan in result.plans), default=0)
    rounds = {"rounds": f"{done} of {result.rounds_wanted}"}
    parts = {
        "Hardware": _in_units(result.hardware),
        "Workload": result.workload,
        "Conditions": {**rounds, **result.conditions},
    }
    return element("div", *(_card(title, values) for title, values in parts.items()), class_="cards")


def _in_units(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes and bytes per second of `sidrec.plans.hardware.Hardware` as people say them."""
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


def _card(title: str, values: Mapping[str, Any]) -> Element:
    return element("section", element("h2", title), _pairs(values.items(), DEPTH), class_="card")


def _pairs(values: Iterable[tuple[str, Any]], depth: int) -> Element:
    lines = [
        part for key, value in values for part in (element("dt", _words(key)), element("dd", _value(value, depth)))
    ]
    return element("dl", *lines)


def _value(value: Any, depth: int) -> Element | str:
    text = _text(value)
    if isinstance(value, Mapping) and depth > 1:
        inner = _pairs(value.items(), depth - 1)
        return inner if len(text) <= LONG else _folded(f"{len(value)} entries", inner)
    return text if len(text) <= LONG else _folded(f"{text[:LINE]}…", text)


def _folded(title: str, content: Element | str) -> Element:
    return element("details", element("summary", title), content)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)} {_text(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return MISSING if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")


# What the cost models expect of each table under one plan, the plan chosen by the reader.


SHOWN = 40  # tables of a plan, the costliest; the others are one line together


def cost_tables(plans: Sequence[PlanMeasurement]) -> Element | None:
    """A select box, and under it the tables of one plan; without a script, of all. None where no plan was rated."""
    rated = [plan for plan in plans if plan.default is not None or plan.calibrated is not None]
    if not rated:
        return None
    options = [element("option", plan.name, value=index) for index, plan in enumerate(rated)]
    choice = element("label", "Plan ", element("select", *options, id="plan-of-costs"), class_="choice")
    return element("div", choice, *(_cost_section(index, plan) for index, plan in enumerate(rated)))


def _cost_section(index: int, plan: PlanMeasurement) -> Element:
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
