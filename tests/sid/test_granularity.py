"""Granularities: the paper's composed ids, and the table rows that stand for them."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from sidrec.config.section import Granularity
from sidrec.schema import ContractError
from sidrec.sid.granularity import granularity_rows, radix_ids

CODES = np.array(
    [
        [-1, -1, -1],  # unknown
        [0, 1, 2],
        [1, 1, 2],
        [0, 1, 0],
        [-1, -1, -1],
        [0, 1, 2],  # same SID as item 1
    ]
)


def test_radix_oracle() -> None:
    codes = np.array([[8191, 8191, 8191]], dtype=np.int32)
    assert radix_ids(codes, "s12").tolist() == [81_918_191]
    assert radix_ids(codes, "s23").tolist() == [81_918_191]
    assert radix_ids(codes, "s2").tolist() == [8191]
    assert radix_ids(np.array([[1, 2, 3]]), "s123").tolist() == [100_020_003]


def test_distinct_pairs_have_distinct_ids() -> None:
    levels = np.array([0, 1, 8190, 8191])
    codes = np.array([[a, b] for a in levels for b in levels])
    assert len(np.unique(radix_ids(codes, "s12"))) == 16


@pytest.mark.parametrize(
    ("name", "rows", "table_rows"),
    [
        ("s1", [0, 1, 2, 1, 0, 1], 3),  # codes 0, 1
        ("s3", [0, 2, 2, 1, 0, 2], 3),  # codes 0, 2
        ("s12", [0, 1, 2, 1, 0, 1], 3),  # pairs (0,1) (1,1)
        ("s23", [0, 2, 2, 1, 0, 2], 3),  # pairs (1,0) (1,2)
        ("s123", [0, 2, 3, 1, 0, 2], 4),  # (0,1,0) (0,1,2) (1,1,2)
    ],
)
def test_rows_number_the_observed_values_in_order(name: str, rows: list[int], table_rows: int) -> None:
    found, size = granularity_rows(CODES, name)
    assert found.dtype == np.int64
    assert (found.tolist(), size) == (rows, table_rows)


def test_row_0_stays_free_when_every_item_is_known() -> None:
    rows, table_rows = granularity_rows(np.array([[7, 7], [3, 7]]), "s1")
    assert (rows.tolist(), table_rows) == ([2, 1], 3)


def test_no_items_need_only_the_unknown_row() -> None:
    rows, table_rows = granularity_rows(np.full((3, 2), -1), "s12")
    assert (rows.tolist(), table_rows) == ([0, 0, 0], 1)


def test_longer_sids_have_more_granularities() -> None:
    codes = np.array([[1, 2, 3, 4, 5]])
    assert radix_ids(codes, "s5").tolist() == [5]
    assert radix_ids(codes, "s34").tolist() == [30_004]


def test_levels_and_codes_must_exist() -> None:
    with pytest.raises(ContractError, match="granularity s34: expected levels among the 3 of the catalog, got 4"):
        radix_ids(CODES, "s34")
    with pytest.raises(ContractError, match="expected codes below the radix 10000, got 10000"):
        radix_ids(np.array([[10_000, 0]]), "s12")


@pytest.mark.parametrize("name", ["s13", "s21", "s11", "s", "s0", "12", "sx", "s1x", "s12345", "s²"])
def test_malformed_names_are_refused_in_the_recipe(name: str) -> None:
    with pytest.raises(ValidationError, match="granularity"):
        TypeAdapter(Granularity).validate_python(name)


def test_good_names_pass_the_recipe() -> None:
    for name in ("s1", "s3", "s12", "s23", "s34", "s123", "s9"):
        assert TypeAdapter(Granularity).validate_python(name) == name
