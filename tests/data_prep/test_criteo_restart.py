"""The preparation of Criteo, killed at any moment and started again, leaves the same bytes as one that was not."""

from pathlib import Path

import pytest

from data_prep.criteo import CriteoCommand
from tests.data_prep.criteo_text import random_lines, write
from tests.digests import digest
from tests.killed import killed_when

DAYS = 6


def sources(folder: Path) -> tuple[Path, ...]:
    lines = random_lines(1500, 0)
    return tuple(write(folder / f"day_{day}", lines[day:] + lines[:day]) for day in range(DAYS))


def kill_preparation(appears: str, days: tuple[Path, ...], out: Path, flags: tuple[str, ...]) -> None:
    command = ["-m", "data_prep.criteo", *map(str, days), str(out), "--block-kib", "64", *flags]
    killed_when(out.with_name(out.name + ".partial") / appears, command)
    assert not out.exists()


@pytest.mark.parametrize("hash_rows", [None, 1000])
def test_killed_and_continued_equals_uninterrupted(tmp_path: Path, hash_rows: int | None) -> None:
    days = sources(tmp_path)
    CriteoCommand((*days, tmp_path / "straight"), hash_rows=hash_rows).run()
    expected = digest(tmp_path / "straight")
    moments = ["data/day_0_dense.npy.partial", "scratch/read_1.json", f"data/day_{DAYS - 1}_dense.npy.partial"]
    flags: tuple[str, ...] = ("--hash-rows", "1000")
    if hash_rows is None:
        flags = ()
        moments += ["data/vocabulary/C9.npy", "scratch/encoded_1.json"]
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    for moment in moments:
        kill_preparation(moment, days, out, flags)
    assert not list(partial.glob("data/*sparse.npy")) or hash_rows or (partial / "scratch/vocabulary.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("data/*.npy")}
    assert len(kept) >= DAYS
    CriteoCommand((*days, out), hash_rows=hash_rows).run()
    assert digest(out) == expected
    assert not partial.exists()
    again = {name for name, written in kept.items() if (out / name).stat().st_mtime_ns != written}
    assert len(again) <= 3, "only the day that was being written is written again"


@pytest.mark.parametrize("change", ["flag", "file before the vocabulary", "file after it"])
def test_another_configuration_does_not_reuse_unfinished_work(tmp_path: Path, change: str) -> None:
    days = sources(tmp_path)
    kill_preparation(
        "scratch/encoded_0.json" if change == "file after it" else "scratch/read_2.json", days, tmp_path / "out", ()
    )
    threshold = 9 if change == "flag" else 3
    if change != "flag":
        write(days[1], random_lines(40, 9))
    for out in ("out", "fresh"):
        CriteoCommand((*days, tmp_path / out), threshold=threshold).run()
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")
