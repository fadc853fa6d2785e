"""Files with rows of a table, ours and other people's: what is read of them, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from sidrec.checkpoint import table_files
from sidrec.checkpoint.table_files import TableSource, check_values, open_table
from sidrec.schema import ContractError
from tests.checkpoint.made_up_checkpoint import numbered

ROWS_RD = numbered(10, 4)
LISTS = pa.array(ROWS_RD.tolist(), pa.list_(pa.float32()))
FIXED = pa.FixedSizeListArray.from_arrays(pa.array(ROWS_RD.flatten().numpy()), 4)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "PART", 3 * 16)


def rows_of(source: TableSource, first: int, last: int) -> dict[int, list[float]]:
    parts = list(source.parts(first, last))
    assert all(len(rows_N) <= 3 and values_ND.dtype == torch.float32 for rows_N, values_ND in parts)
    pairs = [pair for rows_N, values_ND in parts for pair in zip(rows_N.tolist(), values_ND.tolist(), strict=True)]
    assert sorted(row for row, _ in pairs) == [row for row, _ in pairs]
    return dict(pairs)


def as_safetensors(path: Path) -> str:
    save_file({"emb": ROWS_RD, "bias": torch.zeros(3)}, path / "a.safetensors")
    return f"{path}/a.safetensors:emb"


def as_only_half_tensor(path: Path) -> str:
    save_file({"whatever": ROWS_RD.to(torch.bfloat16)}, path / "a.safetensors")
    return f"{path}/a.safetensors"


def as_npy(path: Path) -> str:
    np.save(path / "a.npy", ROWS_RD.numpy())
    return f"{path}/a.npy"


def as_double_columns_first(path: Path) -> str:
    np.save(path / "a.npy", np.asfortranarray(ROWS_RD.double().numpy()))
    return f"{path}/a.npy"


def as_fixed_lists(path: Path) -> str:
    pq.write_table(pa.table({"id": range(10), "vector": FIXED}), path / "a.parquet", row_group_size=4)
    return f"{path}/a.parquet"


def as_lists(path: Path) -> str:
    pq.write_table(pa.table({"vector": LISTS, "other": LISTS}), path / "a.parquet", row_group_size=4)
    return f"{path}/a.parquet:vector"


def as_numbered_lists(path: Path) -> str:
    table = pa.table({"embedding": FIXED, "sum": FIXED, "row": range(10)})
    pq.write_table(table, path / "a.parquet", row_group_size=4)
    return f"{path}/a.parquet"


@pytest.mark.parametrize(
    "write",
    [as_safetensors, as_only_half_tensor, as_npy, as_double_columns_first, as_fixed_lists, as_lists, as_numbered_lists],
)
def test_rows_of_files(write: Callable[[Path], str], tmp_path: Path) -> None:
    source = open_table(write(tmp_path), "hid")
    assert (source.rows, source.width) == (10, 4)
    for first, last in ((0, 10), (0, 1), (3, 9), (4, 8), (9, 12), (10, 20)):
        expected = {row: ROWS_RD[row].tolist() for row in range(first, min(last, 10))}
        assert rows_of(source, first, last) == expected
    check_values(source, 0, 10, lambda rows: None)


@pytest.mark.parametrize("statistics", [True, False])
def test_numbered_rows_may_have_gaps(statistics: bool, tmp_path: Path) -> None:
    numbers = [0, 2, 3, 7, 20, 21, 22, 30, 31, 99]
    table = pa.table({"row": numbers, "v": FIXED})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3, write_statistics=statistics)
    source = open_table(str(tmp_path / "a.parquet"), "hid")
    assert source.rows == 100
    for first, last in ((0, 100), (3, 8), (8, 20), (21, 31), (99, 100)):
        rows = {row: ROWS_RD[place].tolist() for place, row in enumerate(numbers) if first <= row < last}
        assert rows_of(source, first, last) == rows


def with_value(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rows_RD = ROWS_RD.to(dtype)
    rows_RD[7, 2] = value
    return rows_RD


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_values_that_are_no_finite_float32_are_named(value: float, tmp_path: Path) -> None:
    rows_RD = with_value(value, torch.float64)
    save_file({"hid": rows_RD}, tmp_path / "a.safetensors")
    np.save(tmp_path / "a.npy", rows_RD.numpy())
    lists = pa.array(rows_RD.tolist(), pa.list_(pa.float64()))
    pq.write_table(pa.table({"v": lists, "row": range(2, 12)}), tmp_path / "a.parquet")
    for suffix, row in (("safetensors", 7), ("npy", 7), ("parquet", 9)):
        source = open_table(str(tmp_path / f"a.{suffix}"), "hid")
        with pytest.raises(ContractError, match=rf"a.{suffix}.*, row {row}, column 2: expected a finite float32, got"):
            check_values(source, 0, source.rows, lambda rows: None)


def test_missing_values_and_lists_of_another_length(tmp_path: Path) -> None:
    wrong: dict[str, list[object]] = {"got 3": [1.0, 2.0, 3.0], "got a missing value": None}  # type: ignore[dict-item]
    wrong["expected a finite float32, got nan"] = [1.0, None, 3.0, 4.0]
    for sentence, found in wrong.items():
        lists = pa.array([*ROWS_RD.tolist()[:5], found], pa.list_(pa.float32()))
        pq.write_table(pa.table({"v": lists}), tmp_path / "a.parquet")
        with pytest.raises(ContractError, match=f"column v, row 5.*{sentence}"):
            check_values(open_table(str(tmp_path / "a.parquet"), "hid"), 0, 6, lambda rows: None)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [([0, 1, 1], "1 after 1"), ([0, 2, 1], "1 after 2"), ([-1, 0, 1], "-1 after -1"), ([0, None, 2], "1")],
)
@pytest.mark.parametrize("group", [1, 3])
def test_row_numbers_out_of_order(rows: list[int | None], sentence: str, group: int, tmp_path: Path) -> None:
    table = pa.table({"row": pa.array(rows, pa.int64()), "v": FIXED[:3]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=group)
    with pytest.raises(ContractError, match=rf"column row: expected .*, got.*{sentence}"):
        check_values(open_table(str(tmp_path / "a.parquet"), "hid"), 0, 3, lambda rows: None)


def files(folder: Path) -> None:
    save_file({"hid_embedding": ROWS_RD, "b": torch.zeros(3, dtype=torch.int64)}, folder / "two.safetensors")
    save_file({"b": torch.zeros(3, 2, dtype=torch.int64)}, folder / "ints.safetensors")
    np.save(folder / "flat.npy", np.zeros(3))
    np.save(folder / "ints.npy", np.zeros((3, 2), dtype=np.int64))
    np.save(folder / "objects.npy", np.array([[{}]]), allow_pickle=True)
    (folder / "broken.npy").write_bytes(b"\x93NUMPY")
    (folder / "broken.safetensors").write_bytes(b"broken")
    (folder / "broken.parquet").write_bytes(b"PAR1broken")
    pq.write_table(pa.table({"v": range(3)}), folder / "no_lists.parquet")
    pq.write_table(pa.table({"row": ["a"], "v": FIXED[:1]}), folder / "words.parquet")
    (folder / "a.csv").write_text("1,2")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gone.npy", "gone.npy: expected a file with rows of the table hid, got none"),
        ("a.csv", "a.csv: expected FILE.safetensors"),
        ("flat.npy:x", "flat.npy: expected FILE.safetensors"),
        ("two.safetensors", "expected a tensor hid, got none of that name among b, hid_embedding"),
        ("two.safetensors:hid_embeding", "got none of that name; did you mean hid_embedding?"),
        ("two.safetensors:b", r"two.safetensors, b: expected floats of shape \[rows, width\], got I64 \[3\]"),
        ("ints.safetensors", r"expected floats of shape \[rows, width\], got I64 \[3, 2\]"),
        ("flat.npy", r"expected floats of shape \[rows, width\], got float64 \[3\]"),
        ("ints.npy", r"expected floats of shape \[rows, width\], got int64 \[3, 2\]"),
        ("objects.npy", "expected an array as numpy.save writes it, got"),
        ("broken.npy", "expected an array as numpy.save writes it, got"),
        ("broken.safetensors", "expected a safetensors file, got"),
        ("broken.parquet", "expected a readable parquet file, got"),
        ("no_lists.parquet", "expected a column embedding of lists of floats, got columns of lists none of v"),
        ("words.parquet", "column row: expected integers, got string"),
    ],
)
def test_files_that_hold_no_table(name: str, sentence: str, tmp_path: Path) -> None:
    files(tmp_path)
    with pytest.raises(ContractError, match=sentence):
        open_table(str(tmp_path / name), "hid")


def test_a_file_cut_short_after_it_was_opened(tmp_path: Path) -> None:
    for write in (as_safetensors, as_npy, as_numbered_lists):
        name = write(tmp_path)
        source = open_table(name, "hid")
        path = Path(name.removesuffix(":emb"))
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ContractError):
            rows_of(source, 0, 10)


@pytest.mark.parametrize("write", [as_safetensors, as_npy, as_numbered_lists, as_lists])
def test_broken_bytes_end_in_a_message_or_in_rows(write: Callable[[Path], str], tmp_path: Path) -> None:
    """Most of them in the first and last bytes, where a file says what it is."""
    name = write(tmp_path)
    path = next(tmp_path.iterdir())
    whole, random = path.read_bytes(), Random(0)
    sentences = []
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(random.choice((1, 1, 3))):
            place = random.choice((random.randrange(300), random.randrange(len(whole)), -random.randrange(1, 300)))
            broken[place % len(whole)] = random.randrange(256)
        path.write_bytes(broken[: random.choice((len(whole), len(whole), random.randrange(len(whole))))])
        try:
            source = open_table(name, "hid")
            check_values(source, 0, min(source.rows, 100), lambda rows: None)
        except ContractError as error:
            sentences.append(str(error))
    assert 50 <= len(sentences) < 150
    assert all(sentence.startswith(str(path)) for sentence in sentences)
