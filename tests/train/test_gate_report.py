"""The gate by exposure decile."""

import numpy as np
import pytest

from sidrec.train.evaluation import gate_by_decile, rank_correlation, rank_text


def test_a_gate_that_rises_with_exposure() -> None:
    exposures = np.repeat(np.arange(20, dtype=np.float32), 5)
    deciles = gate_by_decile(exposures, exposures / np.float32(100))
    assert deciles["rows"] == [10.0] * 10
    assert deciles["exposures"] == pytest.approx([0.5 + 2 * decile for decile in range(10)])
    assert rank_correlation(deciles["gate"]) == pytest.approx(1)
    assert rank_correlation(deciles["gate"][::-1]) == pytest.approx(-1)


def test_equal_exposures_stay_together() -> None:
    exposures = np.array([0.0] * 95 + [1.0, 2.0, 3.0, 4.0, 5.0], dtype=np.float32)
    deciles = gate_by_decile(exposures, np.ones(100, dtype=np.float32))
    assert deciles["rows"] == [100.0]


def test_a_constant_gate_has_no_order_and_no_nan() -> None:
    assert rank_correlation([0.5, 0.5, 0.5]) is None
    assert rank_text(None) == "undefined (constant gate)"
