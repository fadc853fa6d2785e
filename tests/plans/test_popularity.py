"""Shares and distinct rows: of a Zipf law, of known frequencies, and of ids that were read."""

from math import comb

import numpy as np
import pytest

from sidrec.plans.workload import CountedRows, RowFrequencies, ZipfLaw

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


def test_distinct_rows_of_known_frequencies_are_those_of_the_law() -> None:
    law = ZipfLaw(500, 1.05)
    known = RowFrequencies(np.array([law.share(row, row + 1) for row in range(500)]))
    for first, last in ((0, 500), (0, 3), (100, 500)):
        assert known.share(first, last) == pytest.approx(law.share(first, last))
        assert known.distinct(first, last, 700) == pytest.approx(law.distinct(first, last, 700), rel=0.01)


def test_distinct_rows_of_ids_that_were_read_are_those_of_their_subsets() -> None:
    count_R = np.array([5, 0, 1, 3, 1])
    read = CountedRows(count_R)
    assert read.share(0, 2) == 0.5
    for ids in (1, 4, 7):
        met_R = [1 - comb(10 - count, ids) / comb(10, ids) for count in count_R]
        for first, last in ((0, 5), (0, 1), (1, 2), (2, 5)):
            assert read.distinct(first, last, ids) == pytest.approx(sum(met_R[first:last]))
    assert read.distinct(0, 5, 0) == pytest.approx(0)
    assert read.distinct(0, 5, 10) == read.distinct(0, 5, 1000) == 4


def test_a_thirteenth_of_the_rows_predicts_the_distinct_rows_of_a_law() -> None:
    law, random = ZipfLaw(10**6, 1.05), np.random.default_rng(0)
    read = CountedRows(np.bincount(law.draw(random, 13 * 4096), minlength=law.rows))
    for first, last in ((0, 10**6), (0, 1000), (1000, 10**6)):
        assert read.distinct(first, last, 4096) == pytest.approx(law.distinct(first, last, 4096), rel=0.03)
