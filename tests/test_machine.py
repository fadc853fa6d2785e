"""Container limits, from files as the kernel writes them."""

import os
from pathlib import Path

import psutil
import pytest

from sidrec import machine


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def test_no_container(tmp_path: Path) -> None:
    assert machine.cores(tmp_path) == 8
    assert machine.memory(tmp_path)[1] == psutil.virtual_memory().total


def test_version_2(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**28}\n")
    (tmp_path / "memory.current").write_text(f"{2**26}\n")
    assert machine.cores(tmp_path) == 2.5
    assert machine.memory(tmp_path) == (2**28 - 2**26, 2**28)


def test_version_2_without_limits(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    assert machine.cores(tmp_path) == 8
    assert machine.memory(tmp_path)[1] == psutil.virtual_memory().total


def test_version_1(tmp_path: Path) -> None:
    for folder, name, value in [
        ("cpu", "cpu.cfs_quota_us", 400000),
        ("cpu", "cpu.cfs_period_us", 100000),
        ("memory", "memory.limit_in_bytes", 2**28),
        ("memory", "memory.usage_in_bytes", 2**27),
    ]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(f"{value}\n")
    assert machine.cores(tmp_path) == 4
    assert machine.memory(tmp_path) == (2**27, 2**28)


def test_version_1_without_limits(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.cores(tmp_path) == 8


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, 8),
        ({"LOCAL_WORLD_SIZE": "2"}, 4),
        ({"LOCAL_WORLD_SIZE": "3"}, 2),
        ({"LOCAL_WORLD_SIZE": "99"}, 1),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, 4),  # torchrun's own default
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x", "SIDREC_THREADS": "1"}, 1),
    ],
)
def test_threads_per_rank(environment: dict[str, str], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID", "SIDREC_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "_quota", lambda cgroup: None)
    assert machine.threads_per_rank() == threads
