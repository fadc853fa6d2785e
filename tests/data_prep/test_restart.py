"""A run that is killed and started again leaves the same bytes as one that was not."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep.interactions import Columns, InteractionsCommand
from data_prep.settings import LogSettings

ROWS = 3_000
PARTITION_ROWS = 30
REPOSITORY = Path(__file__).parents[2]


def log_file(folder: Path, extra_row: bool = False) -> Path:
    random = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for _ in range(ROWS + extra_row):
        user, item, second = random.integers(1, 400), random.integers(1, 300), random.integers(0, 300 * 86_400)
        lines.append(f"u{user},i{item},{second}")
    path = folder / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def finish(log: Path, out: Path, seed: int = 0) -> None:
    InteractionsCommand(log, out, Columns(), LogSettings(partition_rows=PARTITION_ROWS, seed=seed)).run()


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_in_the_middle(log: Path, out: Path) -> int:
    """Kills the command once some partitions are done. Returns how many files were there."""
    snapshot = out.with_name(out.name + ".partial") / "scratch" / "snapshot.npz"
    command = [sys.executable, "-m", "data_prep.interactions", str(log), str(out)]
    command += ["--partition-rows", str(PARTITION_ROWS)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not snapshot.exists():
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not out.exists()
    return len(list(snapshot.parents[1].rglob("part-*.parquet")))


def test_killed_and_continued_equals_uninterrupted(tmp_path: Path) -> None:
    log = log_file(tmp_path)
    finish(log, tmp_path / "straight")
    expected = digest(tmp_path / "straight")
    done = kill_in_the_middle(log, tmp_path / "killed")
    first = next((tmp_path / "killed.partial").rglob("part-00000.parquet"))
    written = first.stat().st_mtime_ns
    finish(log, tmp_path / "killed")
    assert 0 < done < len(expected) - 2
    assert digest(tmp_path / "killed") == expected
    kept = next((tmp_path / "killed").rglob("part-00000.parquet"))
    assert kept.stat().st_mtime_ns == written  # finished partitions are not made again
    assert not (tmp_path / "killed.partial").exists()


@pytest.mark.parametrize("change", ["flag", "input"])
def test_another_configuration_does_not_reuse_unfinished_work(tmp_path: Path, change: str) -> None:
    log = log_file(tmp_path)
    kill_in_the_middle(log, tmp_path / "out")
    seed = 7 if change == "flag" else 0
    if change == "input":
        log = log_file(tmp_path, extra_row=True)
    for out in ("out", "fresh"):
        finish(log, tmp_path / out, seed)
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")
