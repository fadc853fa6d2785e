"""How far a rank has come, for whoever watches whether it still gets anywhere."""

import threading
import time
from dataclasses import dataclass, field

COMPUTES, READS, WAITS = "computes", "reads a batch", "waits for the other ranks"
WRITES = "waits for a checkpoint to be written"


@dataclass
class Pulse:
    """Beats with every stage of the work that the rank's own thread begins; beats of other threads do not count.

    count: stages so far, equal on ranks that are in the same place. task, doing: the work and its stage, in words.
    since: when the stage began, in seconds of time.monotonic().
    """

    count: int = 0
    task: str = "the start"
    doing: str = COMPUTES
    since: float = field(default_factory=time.monotonic)
    _thread: int = field(default_factory=threading.get_ident)

    def begin(self, task: str) -> None:
        """A new piece of work, as "step 3 of training"."""
        if threading.get_ident() == self._thread:
            self.task = task
            self.beat(COMPUTES)

    def beat(self, doing: str) -> None:
        """The next stage of the work: COMPUTES, READS or WAITS."""
        if threading.get_ident() == self._thread:
            self.count, self.doing, self.since = self.count + 1, doing, time.monotonic()

    @property
    def place(self) -> str:
        """Where the rank is, in words."""
        return f"{self.task}: {self.doing}"
