"""Warnings of an evaluation: a protocol that gives labels away, a gate that does nothing."""

from typing import Any

import numpy as np
import pytest

from sidrec.train.warnings_of_metrics import gate_warnings, protocol_warnings

ROWS = 1000
LABEL = np.tile(np.array([1, 0], np.float32), ROWS // 2)


def measured(rows: int = 0, positives: int = 0) -> dict[str, Any]:
    return {"cold": {"rows": rows, "positives": positives}}


def statistics(zeros: int, column: str = "stat_exposures") -> dict[str, Any]:
    """The first `zeros` rows have a count of 0."""
    return {column: (np.arange(ROWS) >= zeros).astype(np.float32)}


@pytest.mark.parametrize(("positives", "warned"), [(50, False), (69, False), (78, True), (91, True), (20, True)])
def test_cold_rows_whose_rate_is_far_from_that_of_all(positives: int, warned: bool) -> None:
    """Odds of .50 are 1; of .69 2.2; of .78 3.5."""
    lines = protocol_warnings("test", measured(100, positives), LABEL, {})
    expected = f"warning: split test: {positives:.1f}% of 100 rows on cold items are positive, 50.0% of all"
    assert [line.split(";")[0] for line in lines] == ([expected] if warned else [])


@pytest.mark.parametrize("column", ["stat_exposures", "stat_clicks"])
def test_rows_without_exposures_or_clicks(column: str) -> None:
    label_N = LABEL.copy()
    label_N[:200] = 1
    (line,) = protocol_warnings("test", measured(), label_N, statistics(200, column))
    what = "on items never shown before" if column == "stat_exposures" else "on items never taken before"
    assert f"100.0% of 200 rows {what} are positive, 60.0% of all" in line


@pytest.mark.parametrize("zeros", [0, 50, ROWS])
def test_parts_that_are_few_or_everything_say_nothing(zeros: int) -> None:
    label_N = LABEL.copy()
    label_N[:50] = 1
    assert protocol_warnings("test", measured(99, 99), label_N, statistics(zeros)) == []


def test_no_rows() -> None:
    assert protocol_warnings("test", measured(), LABEL[:0], statistics(0)) == []


@pytest.mark.parametrize(
    ("gate", "rank", "words"),
    [
        ([0.5, 0.5, 0.5], None, "the gate is constant, 0.500 to 0.500"),
        ([0.4, 0.405, 0.409], 1.0, "the gate is constant, 0.400 to 0.409"),
        ([1.0, 1.0, 1.0], None, "the gate is saturated at 1.000; SIDs hardly reach"),
        ([0.99, 0.985, 0.995], 0.5, "the gate is saturated at 0.990; SIDs hardly reach"),
        ([0.002, 0.001, 0.003], 0.5, "the gate is saturated at 0.002; HIDs hardly reach"),
        ([0.9, 0.6, 0.4], -1.0, "the gate falls with exposure (Spearman -1.00)"),
        ([0.4, 0.6, 0.9], 1.0, None),
        ([0.4, 0.6, 0.5], 0.5, None),
    ],
)
def test_gates(gate: list[float], rank: float | None, words: str | None) -> None:
    lines = gate_warnings("test", gate, rank, float(np.mean(gate)))
    assert len(lines) == (words is not None)
    if words:
        assert words in lines[0]
