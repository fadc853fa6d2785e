"""A bench as one HTML file that needs nothing else: conditions, a table to sort, and charts."""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element

from sidrec.bench.behind import behind
from sidrec.bench.page_conditions import conditions
from sidrec.bench.page_costs import cost_tables
from sidrec.bench.page_element import document, element
from sidrec.bench.page_numbers import milliseconds, percent, three_digits
from sidrec.bench.page_predictions import prediction_charts
from sidrec.bench.page_ranks import lookup_chart, memory_chart, rank_table
from sidrec.bench.page_standing import MODELS, by_step, rated, step, unmeasured
from sidrec.bench.page_steps import part_chart, step_chart
from sidrec.bench.page_table import plan_table
from sidrec.bench.result import BenchResult, PlanMeasurement
from sidrec.output import output_file

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
        found = behind(measured[1].rounds, first.rounds)
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
