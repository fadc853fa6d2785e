"""The log made of Criteo's files, killed at any moment and started again, has the bytes of one that was not."""

from pathlib import Path

import pytest

from data_prep import criteo_log
from data_prep.command import save_snapshot
from data_prep.criteo import CriteoCommand
from data_prep.criteo_log import CriteoLogCommand, WorkSizes, write_log
from tests.data_prep.criteo_text import random_lines, write
from tests.digests import digest
from tests.killed import killed_when

SIZES = WorkSizes(file=16, range=16, snapshot=64)
SCRIPT = """
import sys
from pathlib import Path
from data_prep.criteo_log import CriteoLogCommand, write_log
from tests.data_prep.test_criteo_log_restart import SIZES
write_log(CriteoLogCommand(Path(sys.argv[1]), Path(sys.argv[2]), "C3", width=8), SIZES)
"""


@pytest.fixture
def npy(tmp_path: Path) -> Path:
    """Prepared files of 1,500 rows."""
    lines = random_lines(1500, 4)
    days = [write(tmp_path / f"day_{day}", part) for day, part in enumerate((lines[:704], lines[704:]))]
    CriteoCommand((*days, tmp_path / "npy"), threshold=2).run()
    return tmp_path / "npy"


def kill_log(appears: str, npy: Path, out: Path) -> None:
    partial = out.with_name(out.name + ".partial")
    killed_when(partial / appears, ["-c", SCRIPT, str(npy), str(out)])
    assert not out.exists()


def finish(npy: Path, out: Path, width: int = 8) -> None:
    write_log(CriteoLogCommand(npy, out, "C3", width=width), SIZES)


def test_killed_and_continued_equals_uninterrupted(tmp_path: Path, npy: Path) -> None:
    finish(npy, tmp_path / "straight")
    expected = digest(tmp_path / "straight")
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    for moment in ("scratch/pairs.npz", "data/items.parquet", "data/log/train/part-00009.parquet"):
        kill_log(moment, npy, out)
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("data/log/train/*.parquet")}
    kill_log("data/log/test/part-00001.parquet", npy, out)
    assert len(list(partial.rglob("*.parquet"))) < len(expected) - 1, "killed before the last file"
    finish(npy, out)
    assert digest(out) == expected
    assert not partial.exists()
    assert len(kept) >= 10
    assert all((out / "log/train" / name).stat().st_mtime_ns == written for name, written in kept.items())


def test_pairs_are_counted_on_from_a_snapshot(tmp_path: Path, npy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(npy, tmp_path / "straight")
    taken: list[int] = []

    def fail_at_the_third(path: Path, **roots: object) -> None:
        if len(taken) == 2:
            raise KeyboardInterrupt
        save_snapshot(path, **roots)
        taken.append(int(str(roots["done"])))

    monkeypatch.setattr(criteo_log, "save_snapshot", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        finish(npy, tmp_path / "out")
    monkeypatch.setattr(criteo_log, "save_snapshot", lambda path, done, **roots: taken.append(int(str(done))))
    finish(npy, tmp_path / "out")
    assert taken == list(range(64, 1200, 64)), "1,200 rows are train; none is counted twice"
    assert digest(tmp_path / "out") == digest(tmp_path / "straight")


@pytest.mark.parametrize("change", ["flag", "input"])
def test_another_configuration_does_not_reuse_unfinished_work(tmp_path: Path, npy: Path, change: str) -> None:
    kill_log("data/log/train/part-00002.parquet", npy, tmp_path / "out")
    if change == "input":
        labels = npy / "day_0_labels.npy"
        content = bytearray(labels.read_bytes())
        content[-4] ^= 1
        labels.write_bytes(content)
    for out in ("out", "fresh"):
        finish(npy, tmp_path / out, width=7 if change == "flag" else 8)
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")
