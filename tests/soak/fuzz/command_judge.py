"""One command, run in this process in a copy of the world, and judged by what it says and leaves."""

import io
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import traceback
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from types import FrameType

import psutil
import torch

from sidrec import cli
from tests.soak.fuzz.arguments import CommandCase, draw_command
from tests.soak.fuzz.judge import ADDRESS_SPACE, LINES, LONGEST, SEVERAL, Outcome
from tests.soak.fuzz.world import INPLACE, OUTSIDE, REPLACES

ERROR = "sidrec: error: "
SECONDS = 100  # that no case may take, on a busy machine
WORDS = ("expected", "invalid", "Input should", "ould not ")
"""A sentence of ours, or of the parser and pydantic about a value, has one of these."""
LEFT = re.compile(r"(\.partial\d*|\.partial-\d+|\.former-\d+|\.lock|\.tmp)(/|$)")
"""Names of unfinished work."""
Stat = tuple[int, ...]


class TimeoutReachedError(BaseException):
    """The case takes too long; not an Exception, so that no command reports it."""


class World:
    """A copy of the world, made again when a case has changed it."""

    def __init__(self, sound: Path, work: Path) -> None:
        self._sound, self.path = sound, work / "world"
        self.renew()

    def renew(self) -> None:
        """Copies the sound world."""
        if self.path.parent.exists():
            shutil.rmtree(self.path.parent)
        shutil.copytree(self._sound, self.path, symlinks=True)
        (self.path.parent / OUTSIDE).write_text("mine")
        self.before = self._listing()

    def changes(self) -> tuple[set[str], set[str]]:
        """Paths that changed or are gone, and new ones; relative to the world."""
        after = self._listing()
        old = {name for name, found in self.before.items() if after.get(name) != found}
        return old, set(after) - set(self.before)

    def _listing(self) -> dict[str, Stat]:
        """Of files and links: inode, size and times, which no change leaves alone. Of folders: only that they exist."""
        found: dict[str, Stat] = {}
        for folder, folders, files in os.walk(self.path.parent):
            for name in files + folders:
                path = f"{folder}/{name}"
                facts = os.lstat(path)
                times = (facts.st_mtime_ns, facts.st_ctime_ns)
                found[os.path.relpath(path, self.path)] = (
                    () if stat.S_ISDIR(facts.st_mode) else (facts.st_ino, facts.st_size, *times)
                )
        return found


def judge_command(case: CommandCase, world: World) -> Outcome:
    """Runs the command in the world, which is renewed if it changed."""
    status, said = _call([*case.kind.split(), *case.words], world.path)
    old, new = world.changes()
    if old or new:
        world.renew()
    if isinstance(status, str):
        return Outcome("hang" if status.startswith("hang") else "traceback", status)
    if leftovers := sorted(name for name in new if LEFT.search(name) and _unfinished(name, new)):
        return Outcome("written", f"left {leftovers[:3]}; exit status {status}: {said[-LONGEST:]}")
    if wrongly := sorted(name for name in old if not _may_replace(case, name, status)):
        return Outcome("written", f"changed {wrongly[:3]}; exit status {status}: {said[-LONGEST:]}")
    if status == 2 and new:
        return Outcome("written", f"made {sorted(new)[:3]}; exit status {status}: {said[-LONGEST:]}")
    return _judged(status, said)


def _unfinished(name: str, new: set[str]) -> bool:
    """Whether the part of the path that is called like unfinished work is new."""
    parts = name.split("/")
    paths = ("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    return any(path in new for path in paths if LEFT.search(path.rpartition("/")[2]))


def _may_replace(case: CommandCase, name: str, status: int) -> bool:
    """Whether the command may replace what is called so: its own output, when it ended well."""
    allowed = status != 2 and (case.kind in INPLACE or any(word.startswith("--overwrite") for word in case.words))
    return allowed and any(name == own or name.startswith(f"{own}/") for own in REPLACES.get(case.kind, ()))


def _judged(status: int, said: str) -> Outcome:
    if status not in (0, 1, 2):
        return Outcome("sentence", f"exit status {status}: {said[-LONGEST:]}")
    if "Traceback (most recent" in said:
        return Outcome("traceback", said[-LONGEST:])
    if status != 2:
        return Outcome("accepted", said[-200:])
    place = said.rfind(ERROR)
    sentence = said[place + len(ERROR) :].removesuffix("\n") if place >= 0 else ""
    lines = sentence.splitlines() or [""]
    one = SEVERAL in lines[0] or "mistakes" in lines[0] or (len(lines) == 1 and any(word in sentence for word in WORDS))
    unprintable = [sign for sign in sentence if unicodedata.category(sign) in ("Cc", "Cf", "Cs") and sign != "\n"]
    bounded = len(lines) <= LINES and max(map(len, lines)) <= LONGEST
    if said.count(ERROR) != 1 or not one or unprintable or not bounded:
        return Outcome("sentence", ascii(f"{unprintable[:3]} {len(lines)} line(s): {said[-LONGEST:]}"))
    return Outcome("refused", sentence)


def _call(words: list[str], folder: Path) -> tuple[int | str, str]:
    """The exit status, or an exception as text; and what the command wrote on stderr."""
    shown, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    status: int | str
    before = Path.cwd()
    os.chdir(folder)
    try:
        with _limited(SECONDS), redirect_stdout(shown), redirect_stderr(errors):
            status = cli.main(words, check_stack=lambda: None)  # the installation takes longer to read than most
    except TimeoutReachedError as error:
        status = f"hang at {_place(error)}"
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        status = f"{type(error).__name__}: {ascii(error)[:LONGEST]} at {_place(error)}"
    finally:
        os.chdir(before)
    written = errors.buffer.getvalue()
    return status, written.decode("utf-8", "backslashreplace")


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/sidrec/" in frame.filename or "/data_prep/" in frame.filename]
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in [*ours[-2:], frames[-1]])


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def end(_: int, __: FrameType | None) -> None:
        raise TimeoutReachedError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_commands(
    cases: Sequence[int | CommandCase], seed: int, sound: Path, work: Path, conn: Connection, quiet: bool
) -> None:
    """As `sidrec.tests.soak.fuzz.judge.run_cases`, for commands."""
    torch.set_num_threads(1)
    most = psutil.Process().memory_info().vms + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.argv = ["sidrec"]
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        world = World(sound / "world", Path(scratch) / "case")
        for given in cases:
            case = draw_command(given, seed, sound) if isinstance(given, int) else given
            conn.send((case.number, case.kind, case.mutation))
            began = monotonic()
            outcome = judge_command(case, world)
            conn.send(Outcome(outcome.verdict, outcome.said, monotonic() - began))
    conn.close()
