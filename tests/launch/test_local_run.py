"""torchx's own command line, with real ranks on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchx", reason="torchx is not installed; the extra launch brings it")

ROOT = Path(__file__).parents[2]


def _torchx_run(logs: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    torchx = str(Path(sys.executable).with_name("torchx"))
    command = [torchx, "run", "-s", "local_cwd", "-cfg", f"log_dir={logs}", "tests/launch/probe_component.py:probe"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([*command, *words], check=False, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_two_ranks_that_succeed(tmp_path: Path) -> None:
    done = _torchx_run(tmp_path, "--ranks", "2")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("combined.log")), "the logs are kept"


def test_ranks_that_fail_are_seen(tmp_path: Path) -> None:
    done = _torchx_run(tmp_path, "--ranks", "1", GLOO_SOCKET_IFNAME="nosuch0")
    assert done.returncode == 1
    assert "Unable to find address for: nosuch0" in done.stderr
    assert "FAILED" in done.stderr
