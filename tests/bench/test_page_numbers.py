"""The page's figures and axes, against values by hand."""

import math

import pytest

from sidrec.bench.ranking import MISSING, on_scale, percent, three_digits
from sidrec.page.elements import Axis, around, byte_unit, from_zero, logarithmic
from tests.bench.bench_results import plan


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0123, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.4, "1,234"), (0.0, "0")),
        *((1.2345e-7, "1.23e-07"), (-5.0, "-5.00"), (None, MISSING), (math.nan, MISSING), (math.inf, MISSING)),
        (9.999, "10.0"),
    ],
)
def test_three_digits(value: float | None, text: str) -> None:
    assert three_digits(value) == text


def test_percent() -> None:
    assert [percent(share) for share in (0.0, 0.012, 0.0994, 0.0996, 0.12, 12.0)] == [
        *("0.0%", "1.2%", "9.9%", "10%", "12%", "1,200%")
    ]


def test_bytes_are_shown_in_the_largest_unit_that_is_full() -> None:
    assert [byte_unit(size) for size in (0, 1, 1023, 1024, 3 * 2**30, 2**63)] == [
        *((1, "B"), (1, "B"), (1, "B"), (2**10, "KiB"), (2**30, "GiB"), (2**50, "PiB"))
    ]


def test_axes_choose_their_beginning() -> None:
    assert (from_zero([3.0, 8.0]), from_zero([])) == (Axis(0.0, 8.0), Axis(0.0, 1.0))
    assert around([10.0, 100.0]) == Axis(0.0, 103.0)
    assert around([80.0, 100.0]) == Axis(79.4, 100.6)
    assert around([4.0, 100.0]).log


def test_places_and_ticks() -> None:
    assert Axis(50.0, 150.0).percent(75.0) == "25.00%"
    assert Axis(1.0, 100.0, log=True).at(10.0) == pytest.approx(0.5)
    assert Axis(0.0, 120.0).ticks() == [0, 20, 40, 60, 80, 100, 120]
    assert Axis(3.0, 150.0, log=True).ticks() == [5, 10, 20, 50, 100]
    assert Axis(40.0, 90.0, log=True).ticks() == [40, 50, 60, 70, 80, 90]


@pytest.mark.parametrize("values", [[7.0], [1e-6, 1e6], [0.0101, 0.0102], [3.0, 4.0, 5.0], [100.0, 2400.0]])
def test_any_axis_has_ticks_within_and_holds_its_values(values: list[float]) -> None:
    for axis in (around(values), logarithmic(values), from_zero(values)):
        assert all(0 <= axis.at(value) <= 1 for value in values)
        assert 2 <= len(axis.ticks()) <= 7
        assert all(-1e-9 <= axis.at(tick) <= 1 + 1e-9 for tick in axis.ticks())


def test_a_slow_plan_does_not_stretch_the_axes() -> None:
    ranked = [plan(f"{step}", float(step)) for step in (10, 11, 12, 30, 37)]
    assert [each.name for each in on_scale(ranked)] == ["10", "11", "12", "30"]  # the median is 12
    assert [each.name for each in on_scale([plan("a", 9.0), plan("b", 900.0)])] == ["a"]
