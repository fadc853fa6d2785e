"""Raw Criteo text to .npy files: every value equals that of a plain reading, and the manifest is true."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from data_prep import criteo
from data_prep.criteo import CriteoCommand, numbered
from data_prep.criteo_rows import ValueCounts, VocabularyIds, blocks, hashed_ids, read_rows, vocabulary
from sidrec.schema import ContractError
from tests.data_prep.criteo_text import line, plain_reading, random_lines, write

KINDS = ("dense", "sparse", "labels")


def prepared(out: Path, day: int) -> list[np.ndarray]:
    return [np.load(out / f"day_{day}_{kind}.npy") for kind in KINDS]


def test_a_line_by_hand(tmp_path: Path) -> None:
    lines = [
        line(1, {1: 0, 2: -1, 3: 1, 13: 9}, {1: "68fd1e64", 2: "0000000a", 26: "ff"}),
        line(0, {2: "nan", 3: "-inf", 4: "inf"}, {1: "68fd1e64", 2: "0000000b"}),
        line(1, {1: 2.5}, {1: "05db9164"}),
    ]
    rows = read_rows(next(blocks(write(tmp_path / "train.txt", lines), 1 << 16)))
    assert rows.dense_NX.dtype == np.float32
    expected = np.zeros((3, 13), np.float32)
    expected[0, 2], expected[0, 12], expected[2, 0] = np.log(2), np.log(10), np.log(3.5)
    np.testing.assert_array_equal(rows.dense_NX, expected)
    assert rows.value_NC[:, 0].tolist() == [0x68FD1E64, 0x68FD1E64, 0x05DB9164]
    assert rows.value_NC[:, 1].tolist() == [10, 11, 0]
    assert rows.label_N1.tolist() == [[1], [0], [1]]
    tally = rows.tally
    assert (tally.rows, tally.positives) == (3, 2)
    assert tally.dense_missing[:4] == (1, 1, 1, 2)
    assert tally.dense_non_finite[:4] == (0, 1, 1, 1)
    assert tally.dense_negative[:4] == (0, 1, 1, 0)  # minus infinity is below zero, too
    assert tally.categorical_missing[:2] == (0, 1)
    assert tally.categorical_missing[25] == 2

    CriteoCommand((tmp_path / "train.txt", tmp_path / "out"), threshold=2).run()
    sparse = prepared(tmp_path / "out", 0)[1]
    assert sparse[:, 0].tolist() == [2, 2, 1]  # twice, twice, once: rarer than the threshold
    assert sparse[:, 1].tolist() == [1, 1, 0]
    assert np.load(tmp_path / "out/vocabulary/C1.npy").tolist() == [0x68FD1E64]


def test_days_equal_a_plain_reading_whatever_is_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [random_lines(700, 0), random_lines(300, 1)]
    sources = (write(tmp_path / "day_10", days[1], end=""), write(tmp_path / "day_2.gz", days[0]))
    expected = plain_reading(days, threshold=3)
    for kib, held in ((8, 2000), (16_384, criteo.COUNTED_VALUES)):
        monkeypatch.setattr(criteo, "COUNTED_VALUES", held)
        out = tmp_path / f"out{kib}"
        CriteoCommand((*sources, out), block_kib=kib).run()
        for number, day in zip((2, 10), expected, strict=True):
            for found, wanted in zip(prepared(out, number), day, strict=True):
                assert found.dtype == wanted.dtype
                np.testing.assert_array_equal(found, wanted)
    names = {path.relative_to(tmp_path / "out8") for path in (tmp_path / "out8").rglob("*") if path.is_file()}
    assert all((tmp_path / "out8" / n).read_bytes() == (tmp_path / "out16384" / n).read_bytes() for n in names)


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    lines = random_lines(50, 0)
    (tmp_path / "windows.txt").write_bytes("\r\n".join([*lines, ""]).encode())
    read = [read_rows(next(blocks(path, 1 << 16))) for path in (tmp_path / "windows.txt", write(tmp_path / "a", lines))]
    np.testing.assert_array_equal(read[0].value_NC, read[1].value_NC)
    np.testing.assert_array_equal(read[0].dense_NX, read[1].dense_NX)


def test_manifest_has_rows_sizes_and_checksums(tmp_path: Path) -> None:
    source = write(tmp_path / "train.txt", random_lines(200, 3))
    out = tmp_path / "out"
    CriteoCommand((source, out), threshold=1).run()
    told = json.loads((out / "manifest.json").read_text())
    sparse = prepared(out, 0)[1]
    assert told["rows"] == 200
    assert told["days"][0]["source"] == {"name": "train.txt", "bytes": source.stat().st_size}
    assert told["days"][0]["categorical_missing"] == (sparse == 0).sum(axis=0).tolist()
    assert told["categorical"]["table_rows"] == (sparse.max(axis=0) + 1).tolist()
    assert told["categorical"]["distinct"] == sparse.max(axis=0).astype(int).__sub__(1).tolist()
    files = {str(path.relative_to(out)) for path in out.rglob("*.npy")}
    assert set(told["files"]) == files
    for name, facts in told["files"].items():
        data = (out / name).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_hashing_needs_no_vocabulary(tmp_path: Path) -> None:
    lines = [line(0, values={1: "0000000c", 3: "ffffffff"}), line(1, values={1: "00000017"})]
    CriteoCommand((write(tmp_path / "a.txt", lines), tmp_path / "out"), hash_rows=12).run()
    sparse = prepared(tmp_path / "out", 0)[1]
    assert sparse[:, 0].tolist() == [1 + 12 % 11, 1 + 23 % 11]
    assert sparse[:, 2].tolist() == [1 + 0xFFFFFFFF % 11, 0]
    told = json.loads((tmp_path / "out/manifest.json").read_text())
    assert told["categorical"]["table_rows"] == [12] * 26
    assert not (tmp_path / "out/vocabulary").exists()
    assert hashed_ids(np.array([0xFFFFFFFF], np.uint32), 1 << 31).tolist() == [1 + 0xFFFFFFFF % (2**31 - 1)]


def test_counts_are_right_however_often_they_are_merged() -> None:
    random = np.random.default_rng(0)
    parts = [(random.zipf(1.3, 50) % 2**32).astype(np.uint32) for _ in range(40)]
    parts[3][:7] = 0
    counter = ValueCounts(least_merged=5)
    for part in parts:
        counter.count(part)
    values, counts = counter.total()
    together = np.concatenate(parts)
    expected = np.unique(together[together != 0], return_counts=True)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(counts, expected[1])


def test_ids_by_falling_count_then_value() -> None:
    values = np.array([3, 5, 7, 9], np.uint32)
    kept = vocabulary(values, np.array([4, 9, 4, 1]), threshold=2)
    assert kept.tolist() == [5, 3, 7]
    ids = VocabularyIds.of(kept)
    assert ids(np.array([7, 0, 9, 5, 3, 2**32 - 1], np.uint32)).tolist() == [4, 0, 1, 2, 3, 1]
    assert VocabularyIds.of(kept[:0])(np.array([7, 0], np.uint32)).tolist() == [1, 0]


def test_blocks_are_whole_lines_of_bounded_size(tmp_path: Path) -> None:
    lines = random_lines(400, 5)
    for name in ("plain.txt", "packed.gz"):
        source = write(tmp_path / name, lines)
        watched: list[int] = []
        parts = list(blocks(source, 4096, watched.append))
        assert b"".join(part.text for part in parts).decode().splitlines() == lines
        assert max(len(part.text) for part in parts) <= 2 * 4096  # one block in memory, however long the file
        assert [part.first_line for part in parts] == np.cumsum([1, *(part.lines for part in parts[:-1])]).tolist()
        assert sum(watched) == source.stat().st_size


def test_days_are_numbered_by_name_if_all_have_one() -> None:
    sources = [Path(f"data/{name}") for name in ("day_0.gz", "day_10.gz", "day_2")]
    assert [(day.number, day.source.name) for day in numbered(tuple(sources))] == [
        (0, "day_0.gz"),
        (2, "day_2"),
        (10, "day_10.gz"),
    ]
    assert [day.number for day in numbered((Path("train.txt"), Path("day_5")))] == [0, 1]
    with pytest.raises(ContractError, match="day 2 twice"):
        numbered((Path("a/day_2"), Path("b/day_2.gz")))


@pytest.mark.real_data
def test_real_head_equals_a_plain_reading(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "criteo-dac-10k" / "train.txt.gz"
    CriteoCommand((source, tmp_path / "out"), block_kib=512).run()
    lines = gzip.decompress(source.read_bytes()).decode().splitlines()
    for found, wanted in zip(prepared(tmp_path / "out", 0), plain_reading([lines], 3)[0], strict=True):
        np.testing.assert_array_equal(found, wanted)
    told = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (told["rows"], told["days"][0]["positives"]) == (10_000, 2_182)
    assert told["days"][0]["dense_negative"] == [0, 975, *[0] * 11]  # I2 goes below zero in the real log
