"""The page of a study: verdicts, pictures and tables agree with the comparison, and nothing is loaded."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidrec.page.elements import document
from sidrec.page.labels import DOT, numbers
from sidrec.report.study_charts import cost_charts, difference_chart, gate_rows, runs_chart, tuning_charts
from sidrec.report.study_page import study_page, write_study_page
from sidrec.report.study_text import signed
from sidrec.schema import ContractError
from sidrec.study.comparison import Comparison
from tests.report.made_up_study import LEADS, difference, gates_of, made_up_searches, made_up_study

FOUND = made_up_study()
BEAUTY = FOUND.datasets["beauty"]
NUMBERED = {name: number for number, name in enumerate(BEAUTY.variants, 1)}
TEXT = study_page(FOUND, made_up_searches()).decode()


def test_it_loads_nothing_and_has_no_script() -> None:
    assert "default-src 'none'" in TEXT
    assert re.findall(r"(?:src|href)=\"(?!#)|url\(|<script", TEXT) == []


def test_verdicts_come_before_figures() -> None:
    order = ["recommended is ahead of hid_only", "All data sets", "beauty: figures", "yelp: figures", "How to read"]
    places = [TEXT.index(part) for part in order]
    assert places == sorted(places)


def test_links_lead_to_data_sets() -> None:
    assert set(re.findall(r'href="#([^"]+)"', TEXT)) == set(re.findall(r'id="([^"]+)"', TEXT)) != set()


def test_a_cell_has_sign_word_difference_interval_and_what_would_tell() -> None:
    won = BEAUTY.variants["recommended"].against["sid_only"]["GAUC"]
    assert won is not None
    assert won.interval is not None
    ends = f"{signed(won.interval.low)} to {signed(won.interval.high)}"
    cell = f'<td class="won">▲ {signed(won.difference)}<br><small>{ends}</small><br><small>won</small></td>'
    assert TEXT.count(cell) == 2  # in the table of all data sets, and in that of its own
    moved = difference("GAUC", np.array([0.77, 0.74, 0.78]), np.full(3, 0.75))
    assert moved.power is not None
    assert moved.power.runs is not None
    more = moved.power.runs - 3
    recommended = replace(BEAUTY.variants["recommended"], against={"sid_only": {"GAUC": moved}})
    shop = replace(BEAUTY, variants={"sid_only": BEAUTY.variants["sid_only"], "recommended": recommended})
    page = study_page(Comparison("claim", "test", ("GAUC",), ("sid_only",), {"shop": shop}), {}).decode()
    assert f'title="{more} more runs would tell"' in page
    assert f"<small>{more} more runs</small>" in page


def test_what_is_in_files_is_text() -> None:
    name = "<b>bold</b>"
    page = study_page(made_up_study(("shop",), {"hid_only": 0.0, name: 0.03}), {}).decode()
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page


def test_a_chart_of_differences_has_a_row_for_each_other_variant() -> None:
    chart = difference_chart(BEAUTY, "sid_only", "GAUC", 0.002, NUMBERED, runs=True)
    assert chart is not None
    assert [row.get("data-plan") for row in chart.findall("div")] == ["1", "3", "4", "5", None]  # the axis is last
    text = document(chart).decode()
    assert text.count('class="round"') > 20  # runs within the axis
    assert 'class="median lost"' in text  # hid_only
    assert 'class="median won"' in text
    assert "round" not in document(difference_chart(BEAUTY, "sid_only", "GAUC", 0.002, NUMBERED, runs=False)).decode()  # type: ignore[arg-type]
    assert difference_chart(BEAUTY, "no such variant", "GAUC", 0.002, NUMBERED, runs=True) is None


def test_a_dot_stands_where_its_axis_says() -> None:
    """Of two runs, +.01 and +.03, the mean is .02; the axis reaches from below 0 to above the interval's end."""
    found = difference("GAUC", np.array([0.76, 0.78]), np.array([0.75, 0.75]))
    assert found.interval is not None
    low, high = min(0.0, found.interval.low), found.interval.high
    margin = 0.03 * (high - low)
    place = 100 * (0.02 - low + margin) / (high - low + 2 * margin)
    variant = replace(BEAUTY.variants["recommended"], against={"hid_only": {"GAUC": found}})
    chart = difference_chart(
        replace(BEAUTY, variants={"recommended": variant}), "hid_only", "GAUC", 0.0, NUMBERED, runs=True
    )
    assert chart is not None
    assert f'<circle cx="{place:.2f}%" cy="0" r="5" class="median open"' in document(chart).decode()


def test_quality_is_drawn_against_time_and_size() -> None:
    time, size = (document(chart).decode() for chart in cost_charts(BEAUTY, "GAUC", NUMBERED))
    assert time.count('class="dot"') == size.count('class="dot"') == len(LEADS)
    assert "step, ms" in time
    assert "millions" in size
    variants = {
        name: replace(of, cost=replace(of.cost, step_seconds=None, item_parameters=None))
        for name, of in BEAUTY.variants.items()
    }
    (only,) = (document(chart).decode() for chart in cost_charts(replace(BEAUTY, variants=variants), "GAUC", NUMBERED))
    assert "CPU s of a run" in only


def test_runs_of_few_variants_are_joined() -> None:
    few = document(runs_chart(BEAUTY, "GAUC", ["hid_only", "recommended"], NUMBERED)).decode()  # type: ignore[arg-type]
    assert (few.count('class="pair"'), few.count("<circle")) == (10, 20)
    many = made_up_study(("shop",), {f"v{number}": 0.0 for number in range(7)})
    numbered = {f"v{number}": number for number in range(7)}
    text = document(runs_chart(many.datasets["shop"], "GAUC", list(numbered), numbered)).decode()  # type: ignore[arg-type]
    assert (text.count('class="pair"'), text.count("<circle")) == (0, 70)


def test_tuning_draws_a_curve_for_each_variant() -> None:
    curves = {f"v{number}": [None, 0.7, 0.71 + number / 1000] for number in range(8)}
    charts = [document(chart).decode() for chart in tuning_charts(curves, "GAUC", {})]
    assert [chart.count("<polyline") for chart in charts] == [6, 2]
    assert list(tuning_charts({"v": [None, None]}, "GAUC", {})) == []
    assert "Best settings" in TEXT
    assert "Tuning" not in study_page(FOUND, {}).decode()


def test_gates_that_disagree_are_called_unstable() -> None:
    rows = gate_rows(BEAUTY, NUMBERED)
    assert rows is not None
    text = document(rows).decode()
    assert text.count("UNSTABLE") == 1  # published
    assert text.count("dot hollow") == len(gates_of("recommended", 10))  # constant
    assert gate_rows(made_up_study(leads={"hid_only": 0.0}).datasets["beauty"], NUMBERED) is None


def test_numbers_of_close_dots_do_not_overlap() -> None:
    dots = {number: (100.0 + number, 100.0) for number in range(1, 8)}
    texts = [each for each in numbers(dots, (0, 0, 200, 200)) if each.tag == "text"]
    places = [(float(each.get("x", "")), float(each.get("y", "")) - 4) for each in texts]
    assert len(places) == 7
    pairs = [(one, other) for index, one in enumerate(places) for other in places[index + 1 :]]
    assert all(abs(one[0] - other[0]) > 6.5 or abs(one[1] - other[1]) > 11.9 for one, other in pairs)
    assert all(abs(x - 100 - number) > DOT or abs(y - 100) > DOT for x, y in places for number in range(1, 8))
    assert list(numbers({1: (5.0, 5.0)}, (0, 0, 8, 8))) == []  # no room


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_study_page(FOUND, {}, path)
    empty = Comparison("claim", "test", ("AUC",), (), {})
    assert "No run has finished." in write_study_page(empty, {}, path).read_text(encoding="utf-8")
    path.write_text("mine")
    with pytest.raises(ContractError, match="the report of a study"):
        write_study_page(FOUND, {}, path)
    assert path.read_text() == "mine"
