"""Ranks that hang, or are gone: the others say who it was, and end."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from sidrec.train.watchdog import HUNG

ROOT = Path(__file__).parents[2]


def start(case: str, folder: Path) -> list[subprocess.Popen[str]]:
    """Two ranks that join as torchrun's do."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train.stuck_ranks", case, str(folder / case)]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "LOCAL_WORLD_SIZE": "2"},
            text=True,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]


def test_who_hangs_is_named_and_no_rank_stays(tmp_path: Path) -> None:
    cases = {case: start(case, tmp_path) for case in ("killed", "stopped", "reading")}
    said = {}
    try:
        for case, (first, second) in cases.items():
            said[case] = first.communicate(timeout=1200)[1]
            if case == "reading":
                assert second.wait(timeout=1200) == HUNG
    finally:
        for process in (process for ranks in cases.values() for process in ranks):
            process.kill()
            process.communicate()

    assert cases["killed"][0].returncode == 2
    assert "sidrec: error: rank 0 lost its connection to another rank, which has died" in said["killed"]
    assert "Traceback" not in said["killed"]

    assert cases["stopped"][0].returncode == cases["reading"][0].returncode == HUNG
    silent = "no sign of life from rank 1 (last noted in step 3: reads a batch); rank 0 is stuck in step 3: waits"
    assert f"sidrec: error: no progress for 30 s (train.hang_minutes): {silent}" in said["stopped"]
    assert "behind: rank 1 in step 3: reads a batch; rank 0 is stuck in step 3: waits for the other" in said["reading"]
    stacks = tmp_path / "reading" / "hang-rank-1.txt"
    assert "come_to_grief" in stacks.read_text()
    assert "hang-rank-1.json: the last collectives (TORCH_NCCL_TRACE_BUFFER_SIZE)" in stacks.read_text()
    entries = json.loads(stacks.with_suffix(".json").read_text())["gloo"]["entries"]
    assert [entry["profiling_name"] for entry in entries][-2:] == ["gloo:all_reduce"] * 2  # of its first two steps
