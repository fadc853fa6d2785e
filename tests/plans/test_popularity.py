"""Shares and distinct rows, of known frequencies and of ids that were read."""

from math import comb

import numpy as np
import pytest

from sidrec.plans.workload import CountedRows, RowFrequencies, ZipfLaw


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


def test_a_thirteenth_of_what_was_read_tells_a_laws_distinct_rows() -> None:
    law, random = ZipfLaw(10**6, 1.05), np.random.default_rng(0)
    read = CountedRows(np.bincount(law.draw(random, 13 * 4096), minlength=law.rows))
    for first, last in ((0, 10**6), (0, 1000), (1000, 10**6)):
        assert read.distinct(first, last, 4096) == pytest.approx(law.distinct(first, last, 4096), rel=0.03)
