"""Cells of benchmarks' tables."""

from benchmarks.tables import difference_text, markdown_table, spread, spread_text
from sidrec.study.intervals import Difference


def test_a_spread_over_one_value_has_no_deviation_and_undefined_stays_undefined() -> None:
    assert spread_text(spread([0.5])) == "0.5000"
    assert spread_text(spread([0.5, 0.7])) == "0.6000 ± 0.1414"  # sqrt(.1^2 + .1^2)
    assert spread_text(spread([0.5, None])) == "-"


def test_differences_and_tables() -> None:
    assert (
        difference_text(Difference(difference=0.25, low=-0.125, high=0.5, resamples=9)) == "+0.2500 [-0.1250, +0.5000]"
    )
    assert difference_text(None) == "-"
    assert markdown_table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"
