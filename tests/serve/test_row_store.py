"""Rows come back within the rounding of their precision; zeros stay zeros."""

from pathlib import Path

import numpy as np
import pytest

from sidrec.serve import row_store
from sidrec.serve.row_store import Precision, RowStore, write_rows

PRECISIONS: tuple[Precision, ...] = ("f32", "f16", "int8")


def _rows(rows: int = 1000, width: int = 16) -> row_store.Floats:
    random = np.random.default_rng(0)
    rows_RD = (random.normal(size=(rows, width)) * random.lognormal(size=(rows, 1))).astype(np.float32)
    rows_RD[[0, 7]] = 0
    rows_RD[8] = 0.25  # a row without a spread
    return rows_RD


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_are_within_their_rounding(tmp_path: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "ROWS_AT_A_TIME", 300)
    rows_RD = _rows()
    files = write_rows(tmp_path, "hid", rows_RD, precision)
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    store = RowStore(tmp_path, "hid", precision)
    row_M = np.array([999, 0, 7, 8, 8, 123])
    found_MD = store.take(row_M)
    spread_M1 = np.maximum(rows_RD[row_M].max(axis=1), 0) - np.minimum(rows_RD[row_M].min(axis=1), 0)
    bound_M1 = {
        "f32": 0 * spread_M1,
        "f16": 2**-11 * np.abs(rows_RD[row_M]).max(axis=1),
        "int8": 0.502 * spread_M1 / 255,
    }
    assert found_MD.dtype == np.float32
    assert (np.abs(found_MD - rows_RD[row_M]).max(axis=1) <= bound_M1[precision]).all()
    assert not found_MD[1:3].any()
    assert (len(store), store.width) == (1000, 16)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_mean_of_each_list(tmp_path: Path, precision: Precision) -> None:
    write_rows(tmp_path, "cat_a", _rows(), precision)
    store = RowStore(tmp_path, "cat_a", precision)
    lists = [[3, 5, 5], [], [999], [], []]
    found_BD = store.means(np.array([3, 5, 5, 999]), np.array([len(rows) for rows in lists]))
    for found_D, rows in zip(found_BD, lists, strict=True):
        expected_D = store.take(np.array(rows)).mean(axis=0) if rows else np.zeros(store.width)
        assert np.allclose(found_D, expected_D, rtol=1e-6, atol=0)
    assert found_BD.dtype == np.float32


def test_bytes_of_a_row(tmp_path: Path) -> None:
    rows_RD = _rows(5000)
    sizes = {}
    for precision in PRECISIONS:
        files = write_rows(tmp_path, "hid", rows_RD, precision)
        sizes[precision] = round(sum((tmp_path / name).stat().st_size for name in files) / len(rows_RD))
    assert sizes == {"f32": 64, "f16": 32, "int8": 24}


def test_what_a_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    rows_RD = _rows()
    rows_RD[500, 3] = 1e5
    write_rows(tmp_path, "hid", rows_RD, "f32")
    with pytest.raises(ValueError, match="hid, row 500: expected values that f16 can hold, up to 65504"):
        write_rows(tmp_path, "hid", rows_RD, "f16")
    rows_RD[600, 3] = np.nan
    with pytest.raises(ValueError, match="hid, row 600"):
        write_rows(tmp_path, "hid", rows_RD, "int8")


def test_a_row_beyond_the_store_is_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path, "hid", _rows(), "f16")
    with pytest.raises(IndexError):
        RowStore(tmp_path, "hid", "f16").take(np.array([1000]))


def test_whole_numbers_are_kept(tmp_path: Path) -> None:
    rows_RG = np.array([[0, 0], [7, 2**31 - 1]], dtype=np.int64)
    write_rows(tmp_path, "granules", rows_RG, "i32")
    found = RowStore(tmp_path, "granules", "i32").take(np.array([1, 0]))
    assert found.dtype == np.int64
    assert found.tolist() == rows_RG[::-1].tolist()
