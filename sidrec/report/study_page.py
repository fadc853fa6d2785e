"""A study as one HTML file without external resources: verdicts, intervals, cost, slices, runs, tuning, gates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element

from sidrec.io.files import replaced_file
from sidrec.io.output_folders import output_file
from sidrec.page.cards import MISSING, card
from sidrec.page.elements import Content, element, is_titled, page
from sidrec.report.study_charts import (
    KINDS,
    Numbers,
    cost_charts,
    difference_chart,
    gate_rows,
    runs_chart,
    tuning_charts,
)
from sidrec.report.study_text import (
    HOW_TO_READ,
    Searches,
    Table,
    chance,
    conditions_text,
    cost_table,
    gate_tables,
    headline,
    metrics_table,
    primary,
    signed,
    slice_table,
    tuning_table,
    verdict_lines,
    what_would_tell,
)
from sidrec.study.comparison import Comparison, DatasetComparison, PairedDifference, place
from sidrec.study.intervals import LEVEL
from sidrec.study.search import Found
from sidrec.study.verdicts import more_runs

TITLE = "Study: "
MOST_IN_LINES = 5
"""Variants of the picture whose lines join runs, beside the headline."""


def write_study_page(found: Comparison, searches: Searches, path: Path) -> Path:
    """Writes the page. Returns its path. Raises ContractError if another file is in the way."""
    path = output_file(path, "the report of a study", lambda there: is_titled(there, TITLE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as partial:
        partial.write_bytes(study_page(found, searches))
    return path


def study_page(found: Comparison, searches: Searches) -> bytes:
    """The page's content."""
    style = "".join((files("sidrec.report") / name).read_text(encoding="utf-8") for name in ("report.css", "study.css"))
    names = dict.fromkeys(name for of in found.datasets.values() for name in of.variants)
    numbered = {name: number for number, name in enumerate(names, 1)}
    main: list[Element] = [*_summary(found), *_overview(found, numbered)]
    for dataset, of in found.datasets.items():
        main += _dataset(found, dataset, of, searches.get(dataset, {}), numbered)
    main.append(_how_to_read(found))
    return page(f"{TITLE}{found.study}", main, style=style)


def _summary(found: Comparison) -> Iterator[Element]:
    """The verdict sentences, with links to the data sets."""
    if not found.datasets:
        yield element("p", "No run has finished.", class_="lead")
        return
    for dataset, of in found.datasets.items():
        yield element("h2", dataset)
        for line in verdict_lines(found, of):
            kind = "verdict" if line.verdict is None else f"verdict {KINDS[line.verdict]}"
            yield element("p", line.text, class_=kind)
    yield element("p", chance(found), class_="note")


def _overview(found: Comparison, numbered: Numbers) -> Iterator[Element]:
    """Verdicts on the primary column of all data sets, one table for each reference; links to the data sets."""
    if len(found.datasets) < 2:
        return
    column, made = primary(found), []
    for reference in found.references:
        lines = []
        for name in numbered:
            cells = [
                of.variants[name].against.get(reference, {}).get(column) if name in of.variants else None
                for of in found.datasets.values()
            ]
            if any(cells):
                lines.append(element("tr", _name(name, numbered), *map(_verdict_cell, cells)))
        if lines:
            made.append(_verdicts(f"{column} against {reference}", list(found.datasets), lines))
    links = [element("a", name, href=f"#{_anchor(name)}") for name in found.datasets]
    yield element("h2", "All data sets")
    yield element("nav", "Figures of: ", *links, aria_label="Data sets")
    yield element("div", *made, class_="tables")


def _anchor(dataset: str) -> str:
    return f"data-{dataset}"


def _dataset(
    found: Comparison, dataset: str, of: DatasetComparison, searches: Mapping[str, Found], numbered: Numbers
) -> Iterator[Element]:
    column = primary(found)
    compared = [name for name in found.references if any(name in variant.against for variant in of.variants.values())]
    yield element("h2", f"{dataset}: figures", id=_anchor(dataset))
    yield element("p", conditions_text(of), class_="note")
    yield _section("Verdicts", _VERDICT_NOTE, *(_verdict_table(found, of, name, numbered) for name in compared))
    charts = [
        difference_chart(of, reference, column, found.margins[place(column)[1]], numbered, runs=True)
        for reference in compared
    ]
    yield _section("Differences", _DIFFERENCE_NOTE, _halves(charts), *_other_columns(found, of, compared, numbered))
    costs = element("div", *cost_charts(of, column, numbered), class_="pictures")
    table = cost_table(found, of)
    yield _section("Quality and cost", table.note, costs, _table(replace(table, title="", note=""), numbered))
    table = metrics_table(found, of)
    yield _section("Runs", table.note, _runs(found, of, numbered), _table(replace(table, title="", note=""), numbered))
    table = slice_table(found, of)
    yield _section(table.title, table.note, _table(replace(table, title="", note=""), {}))
    if searches:
        yield _tuning(searches, numbered)
    rows = gate_rows(of, numbered)
    if rows is not None:
        (table,) = gate_tables(of)
        yield _section(table.title, table.note, rows, _table(replace(table, title="", note=""), numbered))


_VERDICT_NOTE = (
    f"Mean of paired differences, its {LEVEL:.0%} interval over runs and users, the verdict, and how many more runs "
    "would give one."
)
_DIFFERENCE_NOTE = (
    "Bar: the interval. Filled dot: the mean, won or lost; hollow: cannot tell. Pale dots: single runs. Shaded: the "
    "margin of a tie."
)


def _section(title: str, note: str, *content: Element | None) -> Element:
    about = element("p", note, class_="note") if note else None
    return element("section", element("h3", title), about, *content)


def _halves(charts: Sequence[Element | None]) -> Element:
    return element("div", *charts, class_="halves")


def _other_columns(
    found: Comparison, of: DatasetComparison, references: Sequence[str], numbered: Numbers
) -> Iterator[Element]:
    """The other columns against each reference, folded."""
    for reference in references:
        charts = [
            difference_chart(of, reference, column, found.margins[place(column)[1]], numbered, runs=False)
            for column in found.columns
            if column != primary(found)
        ]
        if any(chart is not None for chart in charts):
            yield element("details", element("summary", f"Other metrics against {reference}"), _halves(charts))


def _runs(found: Comparison, of: DatasetComparison, numbered: Numbers) -> Element:
    """All variants; and references with the headline alone where lines would not fit all."""
    column, names = primary(found), list(of.variants)
    charts = [runs_chart(of, column, names, numbered)]
    few = [name for name in (*found.references, headline(found)) if name in of.variants]
    if len(names) > MOST_IN_LINES + 1:
        charts.append(runs_chart(of, column, list(dict.fromkeys(few))[: MOST_IN_LINES + 1], numbered))
    return element("div", *charts, class_="pictures")


# Tables.


def _wide(table: Element, label: str) -> Element:
    return element("div", table, class_="wide", role="region", aria_label=label, tabindex=0)


def _name(name: str, numbered: Numbers) -> Element:
    number = element("span", f"{numbered[name]}", class_="places") if name in numbered else None
    return element("th", number, name.replace("_", "_\N{ZERO WIDTH SPACE}"), scope="row")


def _table(table: Table, numbered: Numbers) -> Element:
    """A table of text. Its first column is numbered if it names variants."""
    head, *body = table.rows
    heads = element("thead", element("tr", *(element("th", text, scope="col") for text in head)))
    lines = [
        element("tr", _name(first, numbered), *(element("td", text, class_=_kind(text)) for text in rest))
        for first, *rest in body
    ]
    shown = element("table", heads, element("tbody", *lines), class_="report")
    note = element("p", table.note, class_="note") if table.note else None
    title = element("h4", table.title) if table.title else None
    return element("div", title, note, _wide(shown, table.title or "table"))


def _kind(text: str) -> str | None:
    """Class of a cell: longer texts are flush left and broken."""
    return "text" if len(text) > LONGEST_FIGURE else None


LONGEST_FIGURE = 36


def _verdict_table(found: Comparison, of: DatasetComparison, reference: str, numbered: Numbers) -> Element:
    lines = []
    for name, variant in of.variants.items():
        if reference in variant.against:
            cells = [_verdict_cell(variant.against[reference][column]) for column in found.columns]
            lines.append(element("tr", _name(name, numbered), *cells))
    return _verdicts(f"Against {reference}", found.columns, lines)


def _verdicts(title: str, columns: Sequence[str], lines: Sequence[Element]) -> Element:
    heads = element("thead", element("tr", *(element("th", text, scope="col") for text in ("variant", *columns))))
    table = element("table", heads, element("tbody", *lines), class_="report")
    return element("div", element("h4", title), _wide(table, title))


def _verdict_cell(found: PairedDifference | None) -> Element:
    if found is None:
        return element("td", MISSING)
    content: list[Content | None] = [f"{SIGNS[KINDS[found.verdict]]} {signed(found.difference)}"]
    if found.interval is not None:
        ends = f"{signed(found.interval.low)} to {signed(found.interval.high)}"
        content += [element("br"), element("small", ends)]
    content += [element("br"), element("small", found.verdict)]
    hint = None
    if found.verdict == "cannot tell":
        hint = what_would_tell(found)
        content += [element("br"), element("small", _needed(found))]
    return element("td", *content, class_=KINDS[found.verdict], title=hint)


SIGNS = {"won": "▲", "lost": "▼", "tied": "=", "open": "?"}


def _needed(found: PairedDifference) -> str:
    """How many more runs, or times the users, a verdict takes."""
    if found.why or found.power is None:
        return found.why.partition(":")[0] or "more runs"
    more = more_runs(found.power, len(found.runs))
    if more is not None:
        return f"{more:,} more {'run' if more == 1 else 'runs'}"
    return "runs cannot tell" if found.power.users_factor is None else f"{found.power.users_factor:.1f}x users"


# Tuning and explanations.


def _tuning(searches: Mapping[str, Found], numbered: Numbers) -> Element:
    curves = {name: search["curve"] for name, search in searches.items()}
    metric = next(iter(searches.values()))["metric"].upper()
    pictures = element("div", *tuning_charts(curves, metric, numbered), class_="pictures")
    table = tuning_table(searches)
    return _section("Tuning", table.note, pictures, _table(replace(table, title="Best settings", note=""), numbered))


def _how_to_read(found: Comparison) -> Element:
    lines = [element("li", line) for line in HOW_TO_READ]
    margins = {metric.upper(): f"{margin:g}" for metric, margin in found.margins.items()}
    return element(
        "section",
        element("h2", "How to read this page"),
        element("ul", *lines, class_="how"),
        element("div", card("Margins of a tie", margins), class_="cards two"),
    )
