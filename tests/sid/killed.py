"""A process that fits and is killed at a known point, however loaded the machine is."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from sidrec.sid.training.checkpoint import Checkpoint

ROOT = Path(__file__).parents[2]
SWITCH = f"import {__name__} as killed; killed.die_after_first_checkpoint();"


def killed_after_first_checkpoint(program: str, **environment: str) -> None:
    """Runs a Python program in a process of its own, which SIGKILL ends as soon as a training saved a checkpoint."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    ended = subprocess.run([sys.executable, "-c", f"{SWITCH} {program}"], cwd=ROOT, env=variables, check=False)
    assert ended.returncode == -signal.SIGKILL, "the program ended before it saved a checkpoint"


def die_after_first_checkpoint() -> None:
    """From now on, the first checkpoint that this process saves is the last thing it does."""
    save = Checkpoint.save

    def save_and_die(self: Checkpoint, state: dict[str, Any]) -> None:
        save(self, state)
        os.kill(os.getpid(), signal.SIGKILL)

    Checkpoint.save = save_and_die  # type: ignore[method-assign]
