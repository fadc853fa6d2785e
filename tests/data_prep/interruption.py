"""Preparations killed in the midst, and data folders compared byte by byte."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def digest(folder: Path) -> dict[str, str]:
    """sha256 of every file below the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_when(appears: str, out: Path, python_arguments: list[str]) -> None:
    """Runs Python and kills it as soon as a file of OUT.partial is there."""
    sign = out.with_name(out.name + ".partial") / appears
    command = [sys.executable, *python_arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not sign.exists():
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.0005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not out.exists()
