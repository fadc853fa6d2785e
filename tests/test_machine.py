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


TOTAL = psutil.virtual_memory().total
MIB = 2**20


@pytest.mark.parametrize(
    ("own", "limits", "free_and_total"),
    [
        ("0::/job\n", {"job": (512, 100)}, (412, 512)),
        ("0::/job/step\n", {"job": (512, 100), "job/step": (256, 50)}, (206, 256)),
        ("0::/job/step\n", {"job": (128, 100), "job/step": (256, 50)}, (28, 128)),
        ("0::/job/step\n", {"job": (512, 500), "job/step": (256, 50)}, (12, 256)),  # others filled the job's memory
        ("0::/job/step\n", {"job": (256, 100)}, (156, 256)),  # the step's folder is not there: a container's own view
        ("0::/other\n", {"job": (256, 100)}, None),
        ("0::/\n", {".": (300, 10)}, (290, 300)),
        ("", {".": (300, 10)}, (290, 300)),
        ("0::/job\nnonsense\n", {"job": (64, 70)}, (0, 64)),
        ("4:memory:/slurm/job_7\n3:cpu,cpuacct:/\n0::/\n", {"memory/slurm/job_7": (512, 100)}, (412, 512)),
        ("4:memory,hugetlb:/slurm\n", {"memory/slurm": (512, 100), "memory": (500, 450)}, (50, 500)),
        ("4:cpu:/slurm\n", {"memory/slurm": (512, 100)}, None),
        ("0::/../../etc\n", {"job": (256, 100)}, None),
    ],
)
def test_the_least_limit_of_all_groups_around_a_process_counts(
    own: str, limits: dict[str, tuple[int, int]], free_and_total: tuple[int, int] | None, tmp_path: Path
) -> None:
    root = tmp_path / "cgroup"
    for group, (limit, used) in limits.items():
        (root / group).mkdir(parents=True, exist_ok=True)
        names = ("limit_in_bytes", "usage_in_bytes") if "memory" in group else ("max", "current")
        for name, value in zip(names, (limit, used), strict=True):
            (root / group / f"memory.{name}").write_text(f"{value * MIB}\n")
    (tmp_path / "own").write_text(own)
    found = machine.memory(root, tmp_path / "own")
    if free_and_total is None:
        assert found[1] == TOTAL
    else:
        assert found == tuple(each * MIB for each in free_and_total)


def test_the_least_quota_of_all_groups_around_a_process_counts(tmp_path: Path) -> None:
    (tmp_path / "cgroup" / "job" / "step").mkdir(parents=True)
    (tmp_path / "own").write_text("0::/job/step\n")
    for group, text, cores in (
        ("job", "150000 100000", 1.5),
        ("job/step", "max 100000", 1.5),
        ("job/step", "50000 100000", 0.5),
    ):
        (tmp_path / "cgroup" / group / "cpu.max").write_text(f"{text}\n")
        assert machine.cores(tmp_path / "cgroup", tmp_path / "own") == cores


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
