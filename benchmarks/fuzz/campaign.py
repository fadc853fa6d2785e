"""Many cases, a few hundred to a process; what hangs is killed, what dies is noted, the rest goes on."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from time import monotonic

from benchmarks.fuzz import worker
from benchmarks.fuzz.case import Case
from benchmarks.fuzz.draw import draw, make_sound
from benchmarks.fuzz.judge import Outcome

A_PROCESS = 300  # cases
HANGS = 20.0  # seconds that no case may take
STARTS = 300.0  # seconds that a process may take to import the product
PROGRESS = 10.0  # seconds between lines


@dataclass(frozen=True)
class Ran:
    """A case and what came of it."""

    number: int
    kind: str
    mutation: str
    outcome: Outcome


@dataclass
class Campaign:
    """cases: how many are wanted. failures: where cases that failed are kept, as files that can be run again."""

    cases: int
    seed: int
    failures: Path | None = None
    minutes: float = float("inf")
    ran: list[Ran] = field(default_factory=list)
    seconds: float = 0.0

    def run(self) -> None:
        """Runs until all cases, or the minutes, are over; says how far it is."""
        began = last = monotonic()
        with sound_folders() as folder:
            for ran in self._all(folder):
                self.ran.append(ran)
                if not ran.outcome.fine and self.failures is not None:
                    self.failures.mkdir(parents=True, exist_ok=True)
                    draw(ran.number, self.seed, folder / "sound").save(self.failures / f"case-{ran.number}.json")
                self.seconds = monotonic() - began
                if monotonic() - last > PROGRESS:
                    last = monotonic()
                    self._say()
                if self.seconds > 60 * self.minutes:
                    break

    def _all(self, folder: Path) -> Iterator[Ran]:
        for first in range(0, self.cases, A_PROCESS):
            numbers = list(range(first, min(self.cases, first + A_PROCESS)))
            while numbers:  # a process that a case has ended leaves the rest to the next one
                done = 0
                for ran in in_a_process(numbers, self.seed, folder):
                    done += 1
                    yield ran
                numbers = numbers[done:]

    def _say(self) -> None:
        done, verdicts = len(self.ran), Counter(ran.outcome.verdict for ran in self.ran)
        left = self.seconds / done * (self.cases - done)
        listed = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        print(
            f"case {done}/{self.cases}: {listed}; ETA {min(left, 60 * self.minutes - self.seconds):.0f} s", flush=True
        )


@contextmanager
def sound_folders() -> Iterator[Path]:
    """A scratch folder with `sound`, a folder for every kind."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        make_sound(Path(scratch) / "sound")
        yield Path(scratch)


def in_a_process(cases: list[int] | list[Case], seed: int, folder: Path, quiet: bool = True) -> Iterator[Ran]:
    """Runs cases in a process of their own until one of them ends it; that one is the last that is given out."""
    context = get_context("forkserver")
    context.set_forkserver_preload([worker.__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=worker.run, args=(cases, seed, folder / "sound", folder, sender, quiet))
    process.start()
    sender.close()
    try:
        while receiver.poll(STARTS):
            number, kind, mutation = receiver.recv()
            began = monotonic()
            if not receiver.poll(HANGS):
                yield Ran(number, kind, mutation, Outcome("hang", "killed", monotonic() - began))
                return
            try:
                yield Ran(number, kind, mutation, receiver.recv())
            except EOFError:
                process.join()
                yield Ran(number, kind, mutation, Outcome("crash", f"exit status {process.exitcode}"))
                return
        raise RuntimeError(f"expected a process that runs cases within {STARTS:.0f} s, got none")
    except EOFError:  # all cases are done
        return
    finally:
        process.kill()
        process.join()
        receiver.close()
