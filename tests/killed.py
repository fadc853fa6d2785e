"""Processes that die, or stop working, as soon as a file appears: at the same point of the work under any load.

`python -m tests.killed DEED PATTERN MODULE ARGUMENTS...` runs `python -m MODULE ARGUMENTS...`. Before the process
opens, renames or removes a file, it looks for files that match PATTERN. If there is one, it does DEED: "die" (by
SIGKILL), or "hold" (the thread that touches files sleeps).
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOMENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
"""Audit events at which a process looks for the file; https://docs.python.org/3/library/audit_events.html."""


def killed_when(appears: Path, command: list[str], **environment: str) -> None:
    """Runs `python COMMAND` until a file of that name appears, which ends it by SIGKILL. COMMAND: -m MODULE ... or -c
    CODE ..."""
    flag, program, *arguments = command
    if flag == "-m":
        command = ["-m", __name__, "die", str(appears), program, *arguments]
    else:
        command = ["-c", f"from {__name__} import watch; watch('die', {str(appears)!r})\n{program}", *arguments]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, env=variables, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, f"it ended before {appears} was there:\n{ended.stderr.decode()}"


def watch(deed: str, pattern: str) -> None:
    """From now on, this process does the deed at the first moment at which a file matches the pattern."""
    folder, name = Path(pattern).parent, Path(pattern).name
    owner = os.getpid()  # not the processes that it forks
    looking = threading.local()

    def look(event: str, _: object) -> None:
        if event not in MOMENTS or os.getpid() != owner or getattr(looking, "now", False):
            return
        looking.now = True
        try:
            appeared = next(iter(folder.glob(name)), None) is not None
        finally:
            looking.now = False
        if appeared and deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        while appeared:
            time.sleep(600)

    sys.addaudithook(look)


if __name__ == "__main__":
    _, deed, pattern, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    watch(deed, pattern)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
