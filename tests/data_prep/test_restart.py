"""A run that is killed and started again leaves the same bytes as one that was not."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from tests.digests import digest
from tests.killed import killed_when

ROWS = 3_000
PARTITION_ROWS = 30


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


WRITTEN = "written/part-00001.json"


def kill_in_the_middle(log: Path, out: Path, appears: str = WRITTEN) -> int:
    """Kills the command once a file of its scratch folder is there. Returns how many files of the log were there."""
    partial = out.with_name(out.name + ".partial")
    command = ["-m", "data_prep.interactions", str(log), str(out), "--partition-rows", str(PARTITION_ROWS)]
    killed_when(partial / "scratch" / appears, command)
    assert not out.exists()
    return len(list((partial / "data").rglob("part-*.parquet")))


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


@pytest.mark.parametrize(
    "appears",
    [
        *(
            "events",
            "ids_user",
            "ordered",
            "split_events",
            "pairs",
            "drawn",
            "tried_0",
            "negatives",
            "by_user",
            "daily",
        ),
        *("events.parquet.partial", "by_item.parquet.partial"),
    ],
)
def test_killed_at_a_relation_ends_with_the_same_bytes(appears: str, tmp_path: Path) -> None:
    log = log_file(tmp_path)
    finish(log, tmp_path / "straight")
    kill_in_the_middle(log, tmp_path / "killed", f"relations/{appears if '.' in appears else appears + '.parquet'}")
    finish(log, tmp_path / "killed")
    assert digest(tmp_path / "killed") == digest(tmp_path / "straight")
