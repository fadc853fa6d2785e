"""docs/results.md and README.md hold what the script writes from recorded results, and no figure of their own."""

import json
import re

import pytest

from benchmarks import RESULTS
from benchmarks.results_page import (
    FIGURE,
    TABLE,
    TEXT,
    figure,
    page,
    readme,
    recorded_comparison,
    short,
    signed,
    table,
    written,
)
from sidrec.errors import ConfigError

MINUS = "\N{MINUS SIGN}"
STUDY = "learners_beauty/beauty"
SUMMARY = json.loads((RESULTS / "learners_beauty/summary.json").read_text())["beauty"]


def test_the_pages_are_current() -> None:
    others = [path for path, content in written() if path.read_text() != content]
    assert others == [], "run python -m benchmarks.results_page"


def test_the_text_has_no_measured_figure_of_its_own() -> None:
    words = FIGURE.sub("", TABLE.sub("", TEXT.read_text()))
    assert re.findall(r"(?<![\w`.])\.\d\d+", words) == []


def test_figures_equal_the_recorded_ones() -> None:
    of = SUMMARY["adasid"]["metrics"]["tail AUC"]
    assert figure(f"spread {STUDY}/adasid, tail AUC") == f"{of['mean']:.4f} ± {of['sd']:.4f}".replace("0.", ".")
    means = [SUMMARY["random"]["metrics"][column]["mean"] for column in ("AUC", "GAUC")]
    assert figure(f"mean {STUDY}/random, AUC, GAUC") == " / ".join(f"{mean:.4f}"[1:] for mean in means)


def test_a_lead_is_paired_over_runs() -> None:
    claims = json.loads((RESULTS / "claims.json").read_text())
    (claim,) = (c for c in claims if (c["study"], c["reference"]) == ("learners_beauty", "rq_kmeans"))
    of = claim["GAUC"]["over_seeds"]
    expected = f"{signed(of['difference'])} [{signed(of['low'])}, {signed(of['high'])}]"
    assert figure(f"lead {STUDY}/adasid rq_kmeans, GAUC") == expected
    assert figure(f"gap {STUDY}/adasid rq_kmeans, GAUC") == signed(of["difference"])


def test_a_difference_as_the_studys_report_has_it() -> None:
    of = recorded_comparison("claim").datasets["beauty"].variants["recommended"].against["hid_only"]["AUC"]
    assert of is not None
    found = figure("against claim/beauty/recommended hid_only, AUC")
    assert re.fullmatch(rf"\{signed(of.difference)} \[\+\.\d{{4}}, \+\.\d{{4}}\] won", found)


def test_a_table_fills_rows_and_columns() -> None:
    block = """
cell: mean learners_beauty/beauty/{row}, {column}
columns: [AUC, GAUC]
rows:
- {label: random, of: random}
- {label: none, cells: ["", "json claims.json x"]}
"""
    with pytest.raises(ConfigError, match=r"expected a recorded figure, got 'json claims.json x'"):
        table(block)
    lines = table(block.replace("json claims.json x", "count learners_beauty/beauty, all rows")).splitlines()
    auc, gauc = (f"{SUMMARY['random']['metrics'][column]['mean']:.4f}"[1:] for column in ("AUC", "GAUC"))
    assert lines == ["|  | AUC | GAUC |", "| --- | --- | --- |", f"| random | {auc} | {gauc} |", "| none |  | 40,294 |"]


def test_a_table_of_all_recorded_variants() -> None:
    block = f"variants_of: {STUDY}\ncell: 'mean {STUDY}/{{row}}, {{column}}'\ncolumns: [AUC]\n"
    lines = table(block).splitlines()[2:]
    assert {line.split(" | ")[0] for line in lines} == {f"| `{name}`" for name in SUMMARY}


def test_paragraphs_with_figures_are_wrapped_and_lists_stay_lists() -> None:
    long = f"word {{{{count {STUDY}, all rows}}}} " * 15
    made = page(f"# Title\n\n* {long}\n* second\n\nlast\n")
    title, items, last = made.split("\n\n")
    lines = items.split("\n")
    assert (title, last) == ("# Title", "last\n")
    assert [line[:2] for line in lines] == ["* ", "  ", "* "]
    assert items.count("40,294") == 15
    assert max(map(len, lines)) <= 120


def test_the_readme_gets_the_table_of_that_name_and_the_page_does_not() -> None:
    text = f"```table\nname: readme\ncolumns: {{a: 'count {STUDY}, all rows'}}\nrows: [{{label: rows}}]\n```\n"
    before = "x\n<!-- by python -m benchmarks.results_page -->\nold\n<!-- end -->\ny\n"
    made = readme(text, before)
    assert "| rows | 40,294 |" in made
    assert "old" not in made
    assert made.startswith("x\n<!-- by")
    assert made.endswith("<!-- end -->\ny\n")
    assert page(text) == ""


def test_a_figure_without_a_record_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"results_page.md: expected a recorded figure, got 'mean no_such/a/b, AUC'"):
        figure("mean no_such/a/b, AUC")


def test_numbers_are_written_as_in_the_field() -> None:
    assert [short(0.72341), short(1.05), short(-0.5, 2)] == [".7234", "1.0500", f"{MINUS}.50"]
    assert [signed(0.01234), signed(-0.5)] == ["+.0123", f"{MINUS}.5000"]
