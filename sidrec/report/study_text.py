"""A study's report as text: verdicts first, then tables. The same sentences and tables make report.md and the page.

The headline is the variant that sentences are about: `recommended` if the study has it, else the only variant that is
no reference. The primary column is GAUC, or the study's first column without it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sidrec.io.files import write_json, write_text
from sidrec.metrics.exact import FEW_USERS
from sidrec.page.cards import MISSING
from sidrec.study.comparison import Comparison, DatasetComparison, PairedDifference, Spread, comparison, place
from sidrec.study.definition import Study
from sidrec.study.draws import Counts
from sidrec.study.intervals import LEVEL
from sidrec.study.search import Found, load_best
from sidrec.study.verdicts import LOWER_IS_BETTER, Verdict, advice, more_runs
from sidrec.text import screen_width, text_table, wrapped

PRIMARY, HEADLINE = "GAUC", "recommended"
VERDICTS: Mapping[Verdict, str] = {"won": "won", "lost": "lost", "tied": "tied", "cannot tell": "?"}
"""Verdict -> its word in narrow tables."""
Searches = Mapping[str, Mapping[str, Found]]
"""Data set -> variant -> what tuning found: the part `searches` of best.yaml."""
FEW_VARIANTS = 3
"""Variants up to which each gets a sentence of its own, where a study has no headline."""
LISTED = 4
"""Variants that a sentence names."""


@dataclass(frozen=True)
class Table:
    """rows: cells; the first row is the head."""

    title: str
    note: str
    rows: Sequence[Sequence[str]]


def primary(found: Comparison) -> str:
    """The column that verdict sentences are about."""
    return PRIMARY if PRIMARY in found.columns else found.columns[0]


def headline(found: Comparison) -> str | None:
    """The variant that verdict sentences are about; None if no variant stands out by its name."""
    names = list(dict.fromkeys(name for of in found.datasets.values() for name in of.variants))
    others = [name for name in names if name not in found.references]
    return HEADLINE if HEADLINE in names else others[0] if len(others) == 1 else None


# Sentences.


@dataclass(frozen=True)
class Line:
    """verdict: of the one difference that the sentence is about, None for a count of several."""

    text: str
    verdict: Verdict | None


def verdict_lines(found: Comparison, of: DatasetComparison) -> list[Line]:
    """Sentences on each reference: who won, by how much, over how many runs and users."""
    column, main, lines, said = primary(found), headline(found), list[Line](), set[tuple[str, str]]()
    for reference in found.references:
        against = {
            name: difference
            for name, variant in of.variants.items()
            if (difference := variant.against.get(reference, {}).get(column)) is not None
            and (reference, name) not in said
        }
        each = [name for name in against if name == main] or (list(against) if len(against) <= FEW_VARIANTS else [])
        for name in each:
            text = sentence(name, reference, column, against[name], of.counts, found.margins)
            lines.append(Line(text, against[name].verdict))
            said.add((name, reference))
        if rest := {name: difference for name, difference in against.items() if name not in each}:
            lines.append(Line(_counted(rest, reference, column, other=bool(each)), None))
    return lines


def sentence(
    name: str,
    reference: str,
    column: str,
    found: PairedDifference,
    counts: Mapping[str, Counts],
    margins: Mapping[str, float],
) -> str:
    """One difference in words, with its interval, what it rests on, and the verdict."""
    better = (found.difference < 0) == (place(column)[1] in LOWER_IS_BETTER)
    relation = {
        "won": "is ahead of",
        "lost": "is behind",
        "tied": "is level with",
        "cannot tell": "may be ahead of" if better else "may be behind",
    }[found.verdict]
    basis = f"{_runs(len(found.runs))}, {users_of(column, counts)}"
    more = {"tied": f" within {margins[place(column)[1]]:g}", "cannot tell": f"; {what_would_tell(found)}"}
    end = f"{found.verdict}{more.get(found.verdict, '')}"
    return f"{name} {relation} {reference} on {column} by {difference_text(found)}, {basis}: {end}."


def what_would_tell(found: PairedDifference) -> str:
    """Why there is no verdict, or what would give one."""
    return found.why or advice(found.power, len(found.runs))


def users_of(column: str, counts: Mapping[str, Counts]) -> str:
    """The users that a column covers, with the items of cold slices."""
    items, metric = place(column)
    if items not in counts:
        return "users not counted"
    of = counts[items]
    users = f"{of.covered_users if metric in ('gauc', 'uauc') else of.users:,} users"
    return f"{users}, {of.items:,} items" if items == "cold" and of.items is not None else users


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"


def _counted(against: Mapping[str, PairedDifference], reference: str, column: str, other: bool) -> str:
    """How many variants won, lost and so on, and their names."""
    parts = []
    for verdict in VERDICTS:
        names = [name for name, difference in against.items() if difference.verdict == verdict]
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            word = "cannot be told" if verdict == "cannot tell" else verdict
            reasons = {against[name].why for name in names} - {""}
            why = f": {reasons.pop()}" if len(reasons) == 1 else ""
            parts.append(f"{len(names)} {word} ({', '.join(names[:LISTED])}{more}){why}")
    kind = "variant" if len(against) == 1 else "variants"
    return f"{len(against)} {'other ' if other else ''}{kind} against {reference} on {column}: {'; '.join(parts)}."


def chance(found: Comparison) -> str:
    """How many of the verdicts chance alone makes."""
    judged = [
        difference
        for of in found.datasets.values()
        for variant in of.variants.values()
        for columns in variant.against.values()
        for difference in columns.values()
        if difference is not None and difference.interval is not None and not difference.why
    ]
    if not judged:
        return "No difference can be judged yet: intervals need two runs and recorded draws of users."
    by_chance = len(judged) * (1 - LEVEL)
    return (
        f"Of {len(judged)} intervals at {LEVEL:.0%}, about {by_chance:.1f} leave out 0 by chance alone. "
        f"Trust the sentences about {primary(found)}, and many columns that agree, more than one cell."
    )


# Figures.


def short(value: float, digits: int = 4) -> str:
    """.7234 for 0.7234."""
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """+.0123 for 0.0123."""
    return f"{value:+.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:+.4f}"


def difference_text(found: PairedDifference) -> str:
    """The difference with its interval."""
    ends = "" if found.interval is None else f" [{signed(found.interval.low)}, {signed(found.interval.high)}]"
    return f"{signed(found.difference)}{ends}"


def spread_text(of: Spread | None) -> str:
    """Mean ± standard deviation over runs."""
    if of is None:
        return MISSING
    return short(of.mean) if of.sd is None else f"{short(of.mean)} ± {short(of.sd)}"


def counted(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


# Tables.


def tables(found: Comparison, of: DatasetComparison, searches: Mapping[str, Found]) -> list[Table]:
    """The tables of one data set. searches: of its variants."""
    made = [metrics_table(found, of)]
    made += [_difference_table(found, of, reference) for reference in found.references if _compared(of, reference)]
    made += [slice_table(found, of), cost_table(found, of), *gate_tables(of)]
    return [*made, tuning_table(searches)] if searches else made


def _compared(of: DatasetComparison, reference: str) -> bool:
    return any(reference in variant.against for variant in of.variants.values())


def metrics_table(found: Comparison, of: DatasetComparison) -> Table:
    head = ["variant", "runs", "catalogs", *found.columns]
    rows = [
        [name, f"{len(variant.runs)}", f"{variant.catalogs or MISSING}", *map(spread_text, variant.metrics.values())]
        for name, variant in of.variants.items()
    ]
    return Table("Metrics", "Mean ± standard deviation over runs. Lower is better for NE.", [head, *rows])


def _verdict_table(found: Comparison, of: DatasetComparison, reference: str) -> Table:
    """Differences without intervals, narrow enough for a terminal."""
    rows = []
    for name, variant in of.variants.items():
        if reference in variant.against:
            cells = [variant.against[reference][column] for column in found.columns]
            rows.append([name, *(MISSING if each is None else _sign(each) for each in cells)])
    return Table(f"Against {reference} (?: cannot tell)", "", [["variant", *found.columns], *rows])


def _sign(found: PairedDifference) -> str:
    return f"{signed(found.difference)} {VERDICTS[found.verdict]}"


def _difference_table(found: Comparison, of: DatasetComparison, reference: str) -> Table:
    rows = []
    for name, variant in of.variants.items():
        if reference in variant.against:
            cells = [variant.against[reference][column] for column in found.columns]
            rows.append([name, *(MISSING if each is None else verdict_text(each) for each in cells)])
    note = f"Mean of paired differences with a {LEVEL:.0%} interval over runs and users, and the verdict."
    return Table(f"Against {reference}", note, [["variant", *found.columns], *rows])


def verdict_text(found: PairedDifference) -> str:
    """A cell: the difference, its interval, the verdict, and how many more runs, or times the users, would give one."""
    if found.verdict != "cannot tell" or found.why or found.power is None:
        return f"{difference_text(found)} {found.verdict}"
    more, factor = more_runs(found.power, len(found.runs)), found.power.users_factor
    needed = f", {more:,} more" if more is not None else "" if factor is None else f", {factor:.1f}x users"
    return f"{difference_text(found)} cannot tell{needed}"


def slice_table(found: Comparison, of: DatasetComparison) -> Table:
    """What the metrics of each slice rest on."""
    head = ["items", "rows", "positive", "users", "users of GAUC", "rows of GAUC", "distinct items"]
    rows = [
        [
            name.replace("_", " "),
            f"{count.rows:,}",
            MISSING if count.positives is None or not count.rows else f"{count.positives / count.rows:.1%}",
            f"{count.users:,}",
            f"{count.covered_users:,}",
            f"{count.covered_rows:,}",
            counted(count.items),
        ]
        for name, count in of.counts.items()
    ]
    note = (
        f"Split {found.split}. GAUC is over users with both classes. Metrics of fewer than {FEW_USERS} users get no "
        "verdict. Cold: items without a training row; warm tail: tail items with one."
    )
    return Table("What the slices rest on", note, [head, *rows])


def cost_table(found: Comparison, of: DatasetComparison) -> Table:
    column = primary(found)
    head = ["variant", column, "step, ms", "CPU s a run", "item parameters", "other tables", "dense"]
    rows = []
    for name, variant in of.variants.items():
        cost = variant.cost
        step = MISSING if cost.step_seconds is None else f"{1000 * cost.step_seconds.mean:.1f}"
        cpu = MISSING if cost.cpu_seconds is None else f"{cost.cpu_seconds.mean:.0f}"
        counts = (cost.item_parameters, cost.context_parameters, cost.dense_parameters)
        rows.append([name, spread_text(variant.metrics[column]), step, cpu, *map(counted, counts)])
    note = "Means over runs. Runs that trained side by side slow each other down: compare steps of the same study only."
    return Table("Quality and cost", note, [head, *rows])


def gate_tables(of: DatasetComparison) -> Iterator[Table]:
    """What the gates of a variant's runs do, and whether they agree; nothing without gates."""
    rows = []
    for name, variant in of.variants.items():
        if not (gates := variant.gates):
            continue
        ranks = [gate.rank for gate in gates]
        by_run = " ".join("const" if rank is None else f"{rank:+.2f}" for rank in ranks)
        levels = [[getattr(gate, level) for gate in gates] for level in ("least", "most", "never", "saturated")]
        least, most, never, saturated = (_range(values) for values in levels)
        rows.append([name, by_run, agreement(ranks), least, most, never, saturated])
    if rows:
        head = ["variant", "by run", "runs agree", "g, least shown", "g, most shown", "g, never shown", "saturated"]
        note = (
            "By run: Spearman correlation of the mean gate g with the exposure of the item, over deciles of rows. +1: "
            "the gate trusts HIDs the more, the more their items were shown. g is 1 for the HID alone, 0 for the SID "
            "alone; means of the least and the most shown decile and of items never shown before, lowest to highest "
            "run. Saturated: share of rows with g at 0 or 1."
        )
        yield Table("Gate by exposure", note, [head, *rows])


def _range(values: Sequence[float | None]) -> str:
    """Lowest to highest; MISSING where a run has no value."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return MISSING
    low, high = (f"{end(known):.2f}" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def tuning_table(searches: Mapping[str, Found]) -> Table:
    """The budget and outcome of each variant's search on one data set."""
    head = [
        "variant",
        "trials",
        "trained runs",
        "earlier runs",
        "CPU s",
        "best",
        "best settings",
        "at the edge",
        "left out",
    ]
    rows = []
    for name, of in searches.items():
        budget = f"{of['trials']}" + (f" ({of['pruned']} pruned)" if of["pruned"] else "")
        settings = ", ".join(f"{key} {_setting(value)}" for key, value in of["values"].items()) or MISSING
        edges = ", ".join(f"{edge['key']} {edge['end']}" for edge in of["edges"]) or "none"
        left_out = ", ".join(of["left_out"]) or "none"
        counts = [budget, f"{of['trained']}", f"{of['exploratory']}", f"{of['cpu_seconds']:,.0f}", short(of["value"])]
        rows.append([name, *counts, settings, edges, left_out])
    first = next(iter(searches.values()))
    note = (
        f"{first['metric'].upper()} on split {first['split']}, mean over run{'s' * (len(first['runs']) > 1)} "
        f"{', '.join(map(str, first['runs']))} of each trial. No trial was measured on the split of this report. "
        "Earlier runs: of searches with another space or recipe. A best value at the edge of its range may be better "
        "beyond it."
    )
    return Table("Tuning", note, [head, *rows])


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value)


def agreement(ranks: Sequence[float | None]) -> str:
    """Whether gates follow exposure in the same direction in all runs."""
    directions = {0 if not rank else 1 if rank > 0 else -1 for rank in ranks}
    if len(ranks) < 2:
        return "one run"
    if directions >= {-1, 1}:
        return "no: UNSTABLE, the direction differs by run"
    if 0 in directions:
        return "no: constant in some runs" if len(directions) > 1 else "yes: constant"
    return "yes: rises" if directions == {1} else "yes: falls"


def conditions_text(of: DatasetComparison) -> str:
    """Recipe, commits and hardware of a data set's runs, and whether the catalog is fitted anew for each run."""
    facts = [f"{name} {', '.join(values)}" for name, values in of.conditions.items()]
    fits = max((variant.catalogs for variant in of.variants.values()), default=0)
    catalogs = {0: "no catalog", 1: "one catalog for all runs: refits would move the metrics further"}
    return f"Recipe {of.recipe}; {catalogs.get(fits, f'{fits} catalog fits')}; {'; '.join(facts)}."


NOTHING = "No run has finished."
HOW_TO_READ = (
    "A run is one training: its seed and its fit of the catalog are drawn together. Differences are between runs with "
    "the same number.",
    "An interval covers what another set of runs and another set of users (for cold slices, of users and items) would "
    "move. It says nothing about other data sets.",
    "won, lost: the interval leaves out 0. tied: it lies within the margin around 0. cannot tell: neither; the number "
    "beside it is how many more runs would make the half-width at most half the difference, or fit the margin.",
    "Where users alone make the interval too wide, no number of runs helps: score a longer test period.",
    "Nothing in this study was chosen on this split if its settings were tuned on another one. Choosing the best "
    "variant of this report and quoting its interval is choosing on this split.",
)


# The whole report.


def markdown(found: Comparison, searches: Searches) -> str:
    """The report in Markdown."""
    parts = [f"# {found.study}"]
    for dataset, of in found.datasets.items():
        parts += [f"**{dataset}**: {line.text}" for line in verdict_lines(found, of)]
    parts.append(chance(found) if found.datasets else NOTHING)
    for dataset, of in found.datasets.items():
        parts += [f"## {dataset}", conditions_text(of)]
        for table in tables(found, of, searches.get(dataset, {})):
            parts += [f"### {table.title}", table.note, markdown_table(table.rows)]
    margins = ", ".join(f"{metric.upper()} {margin:g}" for metric, margin in found.margins.items())
    parts += ["## How to read it", "\n".join(f"* {line}" for line in (*HOW_TO_READ, f"Margins of a tie: {margins}."))]
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def on_screen(found: Comparison, width: int | None = None) -> str:
    """Verdicts, differences and cost for a terminal, at most `width` columns wide; None for the screen's width."""
    width = width or screen_width()
    parts = [f"{dataset}: {line.text}" for dataset, of in found.datasets.items() for line in verdict_lines(found, of)]
    blocks = [wrapped(part, width) for part in [*parts, chance(found) if found.datasets else NOTHING]]
    for dataset, of in found.datasets.items():
        compared = [_verdict_table(found, of, reference) for reference in found.references if _compared(of, reference)]
        for table in (metrics_table(found, of), *compared, cost_table(found, of)):
            blocks.append(f"{dataset}: {table.title}\n{text_table(table.rows, width=width)}")
    return "\n\n".join(blocks)


def write_study_report(study: Study, results: Path, html: Path | None = None) -> str:
    """Writes report.md, summary.json and report.html into RESULTS/STUDY. Returns the text for a terminal.

    html: the page, in place of report.html.
    """
    from sidrec.report.study_page import write_study_page

    folder = results / study.name
    found, searches = comparison(study, results), load_best(study, results).get("searches", {})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", {name: asdict(of)["variants"] for name, of in found.datasets.items()})
    write_text(folder / "report.md", markdown(found, searches))
    page = write_study_page(found, searches, folder / "report.html" if html is None else html)
    return f"{on_screen(found)}\n\npage: {page}"
