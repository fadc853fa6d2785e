"""docs/results.md and the table of README.md, made from recorded results.

    python -m benchmarks.results_page [--check]

The text is in `benchmarks/results_page.md`. There, `{{FUNCTION PLACE, COLUMN}}` is a figure, and a block `table` is a
table of figures; the table with the name `readme` is written between README.md's markers instead. --check writes
nothing, and fails if a page is not what would be written. Functions:

    mean, spread STUDY/DATASET/VARIANT, COLUMN...         over runs; several columns are joined by " / "
    lead, gap, p STUDY/DATASET/VARIANT REFERENCE, COLUMN  paired over runs: with its 95% t interval, alone, its p value
    against STUDY/DATASET/VARIANT REFERENCE, COLUMN       as in the study's report: hierarchical interval, verdict
    measured STUDY/DATASET/VARIANT, COLUMN                as in the study's report: mean over its finished runs
    runs STUDY/DATASET/VARIANT                            how many
    gate STUDY/DATASET/VARIANT, WHAT                      of its runs: a field of GateOfRun, lowest to highest; or
                                                          `direction`: how many gates rise and fall with exposure
    count STUDY/DATASET, SLICE KEY                        of the rows that were scored: rows, users, covered_users
    day SET SIZE SLICE, METRIC                            of `benchmarks.day_forward`: SIDs on a converged model at
                                                          1/SIZE of the HID bytes against its twin; SLICE `whole`:
                                                          against the twin with the whole table
    day_count SET SIZE SLICE, KEY                         rows, users or items of it
    day_cost SET SIZE, KEY                                step_seconds, item_parameters: of the form with SIDs, by the
                                                          twin's
    json FILE KEY/KEY FORMAT                              a value of benchmarks/results/FILE, or all values of a list
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import yaml

from benchmarks import RESULTS
from sidrec.errors import ConfigError
from sidrec.io.files import read_json, write_text
from sidrec.report.study_text import verdict_text
from sidrec.study.comparison import Comparison, VariantResult, comparison
from sidrec.study.definition import Study, load_study
from sidrec.study.intervals import PairedInterval, paired_interval
from sidrec.study.results import RUNS_FILE, RunResult, run_table
from sidrec.study.search import with_best

ROOT = Path(__file__).parents[1]
TEXT = Path(__file__).with_suffix(".md")
PAGE, README = ROOT / "docs/results.md", ROOT / "README.md"
FIGURE = re.compile(r"\{\{(.+?)\}\}", re.DOTALL)
TABLE = re.compile(r"^```table\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
OF_README = re.compile(r"(<!-- by python -m benchmarks\.results_page -->\n).*?(<!-- end -->)", re.DOTALL)
SPLIT = "test"
WIDTH = 120


def page(text: str) -> str:
    """The text with its tables and figures filled in. Raises ConfigError naming a figure that is not recorded."""
    shown = TABLE.sub(lambda found: "" if is_for_readme(found[1]) else table(found[1]), text)
    parts = [
        _wrapped(FIGURE.sub(lambda found: figure(found[1]), part)) if "{{" in part else part
        for part in shown.split("\n\n")
    ]
    return "\n\n".join(parts)


def _wrapped(paragraph: str) -> str:
    """A paragraph or a list in lines of WIDTH letters, as figures are shorter than their names."""
    items = re.split(r"\n(?=\* )", paragraph.rstrip("\n"))
    lines = [
        fill(" ".join(item.split()), WIDTH, subsequent_indent="  " * item.startswith("* "), break_on_hyphens=False)
        for item in items
    ]
    return "\n".join(lines) + paragraph[len(paragraph.rstrip("\n")) :]


def readme(text: str, before: str) -> str:
    """README.md with the table named `readme` of the text."""
    (block,) = (found[1] for found in TABLE.finditer(text) if is_for_readme(found[1]))
    return OF_README.sub(lambda found: f"{found[1]}\n{table(block)}\n{found[2]}", before)


def is_for_readme(block: str) -> bool:
    """Whether a table is that of README.md."""
    return bool(yaml.safe_load(block).get("name") == "readme")


def table(block: str) -> str:
    """A table in Markdown.

    columns: titles, or title -> cell. cell: a figure in which {row} and {column} are filled in. rows: each has a label
    and one of: `of`, what {row} is; `cell`, in place of the table's; `cells`, one for each column. A row that is a
    variant's name has it as its label. Instead of rows, `variants_of: STUDY/DATASET` makes one of each variant with a
    recorded run.
    """
    keys = yaml.safe_load(block)
    titles = keys["columns"]
    columns: Mapping[str, str] = titles if isinstance(titles, dict) else dict.fromkeys(titles, keys.get("cell", ""))
    lines = [[keys.get("head", ""), *columns], ["---"] * (len(columns) + 1)]
    for of in keys["rows"] if "rows" in keys else _names_of(keys["variants_of"]):
        row = {"label": f"`{of}`", "of": of} if isinstance(of, str) else of
        cells = row.get("cells") or [row.get("cell", cell) for cell in columns.values()]
        filled = [
            cell.replace("{row}", str(row.get("of", ""))).replace("{column}", title)
            for cell, title in zip(cells, columns, strict=True)
        ]
        lines.append([row["label"], *(figure(cell) if cell else "" for cell in filled)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _names_of(place: str) -> list[str]:
    study, dataset = place.split("/")
    return list(dict.fromkeys(run["variant"] for run in recorded_runs(study) if run["dataset"] == dataset))


def figure(call: str) -> str:
    """The text of a figure. Raises ConfigError if nothing is recorded under that name."""
    head, *columns = (part.strip() for part in " ".join(call.split()).split(","))
    name, *words = head.split()
    try:
        return str(FUNCTIONS[name](words, columns))
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise ConfigError(f"{TEXT.name}: expected a recorded figure, got {call!r}: {error!r}") from None


def _mean(words: Sequence[str], columns: Sequence[str]) -> str:
    return " / ".join(short(float(np.mean(_values(words[0], column)))) for column in columns)


def _spread(words: Sequence[str], columns: Sequence[str]) -> str:
    found = [_values(words[0], column) for column in columns]
    return " / ".join(f"{short(float(np.mean(each)))} ± {short(float(np.std(each, ddof=1)))}" for each in found)


def _lead(words: Sequence[str], columns: Sequence[str]) -> str:
    found = _paired(*words, *columns)
    return f"{signed(found['difference'])} [{signed(found['low'])}, {signed(found['high'])}]"


def _gap(words: Sequence[str], columns: Sequence[str]) -> str:
    return signed(_paired(*words, *columns)["difference"])


def _p(words: Sequence[str], columns: Sequence[str]) -> str:
    p = _paired(*words, *columns)["p"]
    if p is None:
        raise ValueError("one pair has no p value")
    return short(p, 3 if p < 0.0095 else 2)


def _against(words: Sequence[str], columns: Sequence[str]) -> str:
    (place, reference), (column,) = words, columns
    if place.split("/")[-1] == reference:
        return ""
    found = _variant(place).against[reference][column]
    return "" if found is None else verdict_text(found).replace("-", "\N{MINUS SIGN}")


@cache
def recorded_comparison(name: str) -> Comparison:
    """The comparison in the report of a study: of its recorded runs."""
    return comparison(tuned_study(name), RESULTS)


def tuned_study(name: str) -> Study:
    """A study of benchmarks/studies with the best values that its recorded searches have found so far."""
    study = load_study(RESULTS.parent / "studies" / f"{name}.yaml")
    return with_best(study, RESULTS, unfinished=True) if study.tuning else study


def _variant(place: str) -> VariantResult:
    study, dataset, variant = place.split("/")
    return recorded_comparison(study).datasets[dataset].variants[variant]


def _measured(words: Sequence[str], columns: Sequence[str]) -> str:
    found = _variant(words[0]).metrics[columns[0]]
    return "" if found is None else short(found.mean)


def _runs(words: Sequence[str], columns: Sequence[str]) -> str:
    return str(len(_variant(words[0]).runs))


def _gate(words: Sequence[str], columns: Sequence[str]) -> str:
    gates, (what,) = _variant(words[0]).gates, columns
    if what == "direction":
        rises = [0.0 if gate.rank is None else gate.rank for gate in gates]
        counts = {"rises": sum(rank > 0 for rank in rises), "falls": sum(rank < 0 for rank in rises)}
        counts["constant"] = len(gates) - sum(counts.values())
        return ", ".join(f"{name} in {count}" for name, count in counts.items() if count)
    values = [getattr(gate, what) for gate in gates]
    known = [value for value in values if value is not None]
    if not known:  # as `never` on a split whose items were all shown before
        return ""
    low, high = (short(end(known), 2) for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _count(words: Sequence[str], columns: Sequence[str]) -> str:
    study, dataset = words[0].split("/")
    run = next(run for run in recorded_runs(study) if run["dataset"] == dataset)
    items, key = columns[0].split()
    return f"{run['metrics'][SPLIT][items][key]:,}"


def _day_entry(words: Sequence[str]) -> dict[str, Any]:
    """The comparison at one size."""
    found = read_json(RESULTS / f"day_forward_{words[0]}" / "day_forward.json", "recorded results")
    return next(entry for entry in found["sizes"] if entry["size"] == int(words[1]))


def _day_slice(words: Sequence[str]) -> dict[str, Any]:
    entry, name = _day_entry(words), " ".join(words[2:])
    return dict(entry["against_whole"]["all"] if name == "whole" else entry["differences"][name])


def _day(words: Sequence[str], columns: Sequence[str]) -> str:
    found = _day_slice(words)[columns[0].lower()]
    low, high = (signed(found["interval"][end]) for end in ("low", "high"))
    return f"{signed(found['difference'])} [{low}, {high}] {found['verdict']}"


def _day_count(words: Sequence[str], columns: Sequence[str]) -> str:
    return f"{_day_slice(words)['gauc'][columns[0]]:,}"


def _day_cost(words: Sequence[str], columns: Sequence[str]) -> str:
    costs, (key,) = _day_entry(words)["costs"], columns
    return f"{costs['sids'][key] / costs['hid'][key]:.2f}"


def _json(words: Sequence[str], columns: Sequence[str]) -> str:
    file, keys, form = words if len(words) == 3 else (*words, "")
    found = read_json(RESULTS / file, "recorded results")
    for key in keys.split("/"):
        found = found[key]
    values = found if isinstance(found, list) else [found]
    texts = [
        value if isinstance(value, str) else _bare(format(value, form or ("," if isinstance(value, int) else "g")))
        for value in values
    ]
    return (", " if columns == ["list"] else " ").join(texts)


FUNCTIONS = {
    "mean": _mean,
    "spread": _spread,
    "lead": _lead,
    "gap": _gap,
    "p": _p,
    "against": _against,
    "measured": _measured,
    "runs": _runs,
    "gate": _gate,
    "count": _count,
    "day": _day,
    "day_count": _day_count,
    "day_cost": _day_cost,
    "json": _json,
}


def short(value: float, digits: int = 4) -> str:
    """.7234 for 0.7234."""
    return _bare(f"{value:.{digits}f}")


def signed(value: float | None) -> str:
    """+.0123 for 0.0123; negative values with a minus sign, not a hyphen."""
    if value is None:
        raise ValueError("one pair has no interval")
    return _bare(f"{value:+.4f}")


def _bare(text: str) -> str:
    return re.sub(r"^([+-]?)0\.", r"\1.", text).replace("-", "\N{MINUS SIGN}")


def _paired(variant: str, reference: str, column: str) -> PairedInterval:
    study, dataset, _ = variant.split("/")
    found = [_by_run(place, column) for place in (variant, f"{study}/{dataset}/{reference}")]
    both = sorted(found[0].keys() & found[1].keys())
    return paired_interval(*([of[number] for number in both] for of in found))


def _values(place: str, column: str) -> list[float]:
    return list(_by_run(place, column).values())


def _by_run(place: str, column: str) -> dict[int, float]:
    """Run -> the metric. place: STUDY/DATASET/VARIANT."""
    study, *names = place.split("/")
    *items, metric = column.lower().split()
    found = {
        run["run"]: run["metrics"][SPLIT][items[0].replace("-", "_") if items else "all"][metric]
        for run in recorded_runs(study)
        if [run["dataset"], run["variant"]] == names
    }
    if not found:
        raise KeyError(place)
    return {number: float(value) for number, value in found.items() if value is not None}


@cache
def recorded_runs(study: str) -> tuple[RunResult, ...]:
    """The recorded runs of a study."""
    path = RESULTS / study / RUNS_FILE
    if not path.exists():
        raise FileNotFoundError(path)
    return tuple(run_table(path).read().values())


def written() -> Iterator[tuple[Path, str]]:
    """The pages with the content that they should have."""
    text = TEXT.read_text(encoding="utf-8")
    yield PAGE, page(text)
    yield README, readme(text, README.read_text(encoding="utf-8"))


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 1 if --check finds another page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results_page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="compare with the pages instead of writing them")
    check = parser.parse_args(argv).check
    others = [(path, content) for path, content in written() if path.read_text(encoding="utf-8") != content]
    for path, content in others:
        if check:
            print(f"{path}: expected another page; run python -m benchmarks.results_page", file=sys.stderr)
        else:
            write_text(path, content)
    return 1 if check and others else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
