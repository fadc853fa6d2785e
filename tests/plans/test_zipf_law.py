"""Ids drawn by a Zipf law, against the law itself."""

import numpy as np
import pytest

from sidrec.plans.zipf_law import ZipfLaw

ROWS, COUNT = 1000, 200_000


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.05, 1.5])
def test_shares_of_row_ranges(exponent: float) -> None:
    rows = ZipfLaw(ROWS, exponent).draw(np.random.default_rng(0), COUNT)
    assert rows.min() >= 0
    assert rows.max() < ROWS
    law = 1 / np.arange(1, ROWS + 1) ** exponent
    law /= law.sum()
    found = np.bincount(rows, minlength=ROWS) / COUNT
    # Beyond the first rows the continuous law is the discrete one: compare how the rest is spread.
    for first, last in ((10, 100), (100, 1000)):
        expected = law[first:last].sum() / law[10:].sum()
        assert found[first:last].sum() / found[10:].sum() == pytest.approx(expected, abs=0.01)


def test_one_row() -> None:
    assert ZipfLaw(1, 1.2).draw(np.random.default_rng(0), 5).tolist() == [0] * 5


def test_a_thousand_times_as_many_rows_need_no_more_memory() -> None:
    assert ZipfLaw(4 * 10**9, 1.05).draw(np.random.default_rng(0), 1000).max() < 4 * 10**9
