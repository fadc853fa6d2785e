"""What is wrong with a raw Criteo log is said in one sentence with file and line, and nothing half-written stays."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from data_prep.criteo import FIRST_LOOK, CriteoCommand
from sidrec.schema import ContractError
from tests.data_prep.criteo_text import line, random_lines, write

GOOD = line(1, {1: 5}, {1: "68fd1e64"})


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ([line(2)], r"line 3, label: expected 0 or 1, got '2'"),
        ([line("")], r"line 3, label: expected 0 or 1, got ''"),
        ([line(0, {3: "x"})], r"line 3, I3: expected a number, got 'x'"),
        ([line(0, {}, {26: "68fd1e6g"})], r"line 3, C26: expected up to 8 hexadecimal digits, got '68fd1e6g'"),
        ([line(0, {}, {1: "168fd1e64"})], r"line 3, C1: expected up to 8 hexadecimal digits"),
        ([GOOD + "\r", line(3) + "\r"], r"line 4, label: expected 0 or 1, got '3'"),
        ([GOOD.partition("\t")[2]], r"line 3: expected 40 fields between tabs, got 39 \(a test file has no labels\)"),
        ([GOOD[:20]], r"line 3: expected 40 fields between tabs, got \d+"),
        ([GOOD + "\tff"], r"line 3: expected 40 fields between tabs, got 41"),
        ([GOOD.partition("\t")[2], GOOD + "\tff"], r"line 3: expected 40 fields between tabs, got 39"),
        ([""], r"line 3: expected 40 fields between tabs, got 1"),
    ],
)
def test_a_broken_line(tmp_path: Path, broken: list[str], sentence: str) -> None:
    source = write(tmp_path / "train.txt", [GOOD, GOOD, *broken, GOOD])
    with pytest.raises(ContractError, match=sentence):
        CriteoCommand((source, tmp_path / "out")).run()
    assert {path.name for path in tmp_path.iterdir()} == {"train.txt"}


def test_a_broken_line_far_into_the_file_names_its_number(tmp_path: Path) -> None:
    lines = [GOOD] * (3 * FIRST_LOOK // len(GOOD))
    source = write(tmp_path / "train.txt", [*lines, line(7)])
    with pytest.raises(ContractError, match=rf"train.txt, line {len(lines) + 1}, label"):
        CriteoCommand((source, tmp_path / "out"), block_kib=16).run()
    assert {path.name for path in tmp_path.iterdir()} == {"train.txt"}


def test_files_that_are_empty_missing_cut_off_or_no_text(tmp_path: Path) -> None:
    packed = gzip.compress("\n".join(random_lines(2000, 0)).encode())
    files = {
        "none.txt": (None, "expected a file to read, got none"),
        "empty.txt": (b"", "expected at least one line, got an empty file"),
        "cut.gz": (packed[: len(packed) // 2], "expected a whole gzip file"),
        "binary.txt": (b"\xff\xfe" * 50 + b"\n", "line 1: expected 40 fields"),
        "endless.txt": (b"0" * (3 * FIRST_LOOK), "line 1: expected a line of at most 65536 bytes"),
    }
    for name, (data, sentence) in files.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ContractError, match=sentence):
            CriteoCommand((tmp_path / name, tmp_path / "out")).run()
        assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"threshold": 0}, "--threshold: expected at least 1, got 0"),
        ({"hash_rows": 1}, "--hash-rows: expected from 2 to"),
        ({"block_kib": 0}, "--block-kib: expected from 1 to"),
    ],
)
def test_flags(tmp_path: Path, flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ContractError, match=sentence):
        CriteoCommand((tmp_path / "a", tmp_path / "b"), **flags).run()


def test_a_folder_that_exists_stays(tmp_path: Path) -> None:
    source = write(tmp_path / "train.txt", [GOOD])
    (tmp_path / "out").mkdir()
    with pytest.raises(ContractError, match="no such folder yet"):
        CriteoCommand((source, tmp_path / "out")).run()
    CriteoCommand((source, tmp_path / "out"), overwrite=True).run()
    assert (tmp_path / "out/manifest.json").exists()


def test_days_that_were_read_survive_another_days_broken_line(tmp_path: Path) -> None:
    good, bad = tmp_path / "day_0", tmp_path / "day_1"
    write(good, random_lines(300, 0))
    lines = [GOOD] * (2 * FIRST_LOOK // len(GOOD))
    write(bad, [*lines, line(7)])
    command = CriteoCommand((good, bad, tmp_path / "out"))
    with pytest.raises(ContractError, match="day_1"):
        command.run()
    assert not (tmp_path / "out").exists()
    read = (tmp_path / "out.partial/data/day_0_dense.npy").stat().st_mtime_ns
    write(bad, [*lines, line(1)])
    command.run()
    assert (tmp_path / "out/day_0_dense.npy").stat().st_mtime_ns == read
    CriteoCommand((good, bad, tmp_path / "fresh")).run()
    for path in (tmp_path / "fresh").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "fresh")).read_bytes()
