"""A rank does not outlive the torchrun that started it."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sidrec.machine import _adopts_orphans, end_with_launcher

ROOT = Path(__file__).parents[1]
RANK = "import time; from sidrec.machine import end_with_launcher; end_with_launcher(); print('up'); time.sleep(600)"
LAUNCHER = f"""
import subprocess, sys
rank = subprocess.Popen([sys.executable, "-u", "-c", {RANK!r}], stdout=subprocess.PIPE, start_new_session=True)
rank.stdout.readline()
print(rank.pid, flush=True)
rank.wait()
"""


def test_a_rank_ends_when_its_launcher_was_killed() -> None:
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "test", "RANK": "3"}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert launcher.stdout
    assert launcher.stderr
    rank = psutil.Process(int(launcher.stdout.readline()))
    assert rank.is_running()
    launcher.kill()
    gone, _ = psutil.wait_procs([rank], timeout=300)
    if not gone:
        rank.kill()
    assert gone, "the rank outlived its launcher"
    assert launcher.stderr.read() == "sidrec: rank 3 ends: torchrun, which started it, is gone\n"
    launcher.wait()


def test_a_rank_whose_launcher_was_killed_before_it_looked_ends() -> None:
    if not _adopts_orphans(1):
        pytest.skip("orphans are given to a Python process here, which could be a torchrun")
    orphan = f"sleep 1; exec {sys.executable} -u -c {RANK!r}"
    launcher = f"import subprocess; print(subprocess.Popen(['sh', '-c', {orphan!r}], start_new_session=True).pid)"
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "test", "RANK": "3"}
    command = [sys.executable, "-c", launcher]
    found = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=True)
    assert found.stdout.strip().isdigit()
    assert found.stderr == "sidrec: rank 3 ends: torchrun, which started it, is gone\n", "and its output has ended"


def test_a_process_that_is_no_rank_is_not_watched() -> None:
    assert "TORCHELASTIC_RUN_ID" not in os.environ
    threads = psutil.Process().num_threads()
    end_with_launcher()
    assert psutil.Process().num_threads() == threads
