"""One training per run directory: a second one would remove what the first is writing."""

import fcntl
import os
import time
from pathlib import Path

from sidrec.config import ConfigError

PATIENCE = 10.0  # seconds: ranks whose torchrun was killed are on their way out


class RunLock:
    """A run directory, held by one process at a time.

    The lock lies on the directory itself, leaves no file behind, and goes with the process, however that ends. Where a
    file system knows no locks, nothing is held and nobody is refused.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: int | None = None

    def take(self, patience: float = PATIENCE) -> None:
        """Holds the directory from now on, if it is there. patience: seconds to wait for a process that is leaving.

        Raises ConfigError when another process holds it for longer.
        """
        if self._held is not None or not self._path.is_dir():
            return
        directory = os.open(self._path, os.O_RDONLY)
        deadline = time.monotonic() + patience
        try:
            while not _locked(directory):
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{self._path}: expected a run that no other process trains, got one that is held"
                    )
                time.sleep(0.1)
        except BaseException:
            os.close(directory)
            raise
        self._held = directory

    def release(self) -> None:
        """Lets others have it."""
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _locked(directory: int) -> bool:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        pass
    return True
