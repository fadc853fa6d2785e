"""Ids drawn by a Zipf law, against the law itself."""

import numpy as np
import pytest

from sidrec.plans.workload import ZipfLaw

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


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.05, 1.5])
@pytest.mark.parametrize(("rows", "ids"), [(1000, 200), (1000, 5000), (10**7, 20_000)])
def test_distinct_rows_are_those_that_draws_meet(rows: int, ids: int, exponent: float) -> None:
    law, random = ZipfLaw(rows, exponent), np.random.default_rng(0)
    draws = [np.unique(law.draw(random, ids)) for _ in range(40)]
    for first, last in ((0, rows), (0, rows // 4), (rows // 4, rows), (10, 11)):
        met = np.array([((first <= draw) & (draw < last)).sum() for draw in draws])
        spread = met.std() / np.sqrt(len(draws))
        assert law.distinct(first, last, ids) == pytest.approx(met.mean(), rel=0.01, abs=4 * spread + 0.1)
    assert law.distinct(7, 7, ids) == 0


def test_one_row() -> None:
    assert ZipfLaw(1, 1.2).draw(np.random.default_rng(0), 5).tolist() == [0] * 5


def test_a_thousand_times_as_many_rows_need_no_more_memory() -> None:
    assert ZipfLaw(4 * 10**9, 1.05).draw(np.random.default_rng(0), 1000).max() < 4 * 10**9
