"""Item pairs by row number, and files that are none."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec.schema import ContractError
from sidrec.sid.item_vectors import read_item_pairs

IDS = np.array([30, 10, 20])


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_ids_become_row_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.parquet", item_id=[10, 20, 10], other_id=[30, 10, 30], weight=[0.5, 1.0, 2.0])
    pairs = read_item_pairs(path, IDS)
    assert pairs.dtype == np.int64
    assert pairs.tolist() == [[1, 0], [2, 1], [1, 0]]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"item_id": [10], "other": [30]}, r"expected columns item_id and other_id, got \['item_id', 'other'\]"),
        ({"item_id": ["a"], "other_id": [30]}, "column item_id: expected int64 without missing values, got string"),
        ({"item_id": [10], "other_id": [30.0]}, "column other_id: expected int64 without missing values, got double"),
        ({"item_id": [10, None], "other_id": [30, 20]}, "column item_id: expected int64 .* got int64 with 1 missing"),
        ({"item_id": [10, 20, 20], "other_id": [30, 99, 5]}, "row 1, column other_id: .*, got 99 .2 such rows"),
        ({"item_id": [10, 20], "other_id": [30, 20]}, "row 1: expected two different items, got item 20 twice"),
        ({"item_id": pa.array([], pa.int64()), "other_id": pa.array([], pa.int64())}, "expected at least one pair"),
    ],
)
def test_files_that_are_no_pairs(columns: dict[str, object], sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.parquet", **columns)
    with pytest.raises(ContractError, match=rf"pairs\.parquet.*{sentence}"):
        read_item_pairs(path, IDS)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    with pytest.raises(ContractError, match=r"as `sidrec prep behavior` writes them, got no such file"):
        read_item_pairs(path, IDS)
    path.write_bytes(b"PAR1")
    with pytest.raises(ContractError, match="expected a readable parquet file"):
        read_item_pairs(path, IDS)
