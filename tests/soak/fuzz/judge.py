"""One case, run and judged, and the process that cases run in."""

import hashlib
import os
import resource
import sys
import traceback
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Literal

import psutil
import torch

from sidrec.errors import SidrecError
from tests.soak.fuzz.cases import Case, copy_of, draw
from tests.soak.fuzz.kinds import KINDS

OURS = SidrecError
LONGEST, LINES = 4000, 50  # characters of a line, and lines, that anybody would read
GROWTH = 1 << 30  # bytes of memory; no file here is larger than a few megabytes
SEVERAL = "mistake(s) in the"  # how a list of mistakes begins

Verdict = Literal["accepted", "refused", "traceback", "sentence", "written", "memory", "hang", "crash"]
SOUND: tuple[Verdict, ...] = ("accepted", "refused")


@dataclass(frozen=True)
class Outcome:
    """said: the message, or what went wrong. seconds: wall-clock."""

    verdict: Verdict
    said: str = ""
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        return self.verdict in SOUND


def judge(case: Case, sound: Path, work: Path) -> Outcome:
    """Runs a case in a copy of its kind's sound folder, `work`, which is replaced."""
    kind = KINDS[case.kind]
    folder = copy_of(sound / kind.name, work)
    case.put(folder)
    before, memory = listing(folder), _peak()
    try:
        kind.read(folder)
        outcome = Outcome("accepted")
    except OURS as error:
        outcome = _judged(str(error))
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {error}"[:LONGEST]
        outcome = Outcome("traceback", f"{words} ({place.filename}:{place.lineno}, {place.name})")
    if _peak() - memory > GROWTH:
        return Outcome("memory", f"{(_peak() - memory) >> 20} MiB more; {outcome.verdict}: {outcome.said}")
    after = listing(folder)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    if (outcome.verdict == "refused" and changed) or changed & set(before):
        return Outcome("written", f"{sorted(changed)}; {outcome.verdict}: {outcome.said}")
    return outcome


def _judged(sentence: str) -> Outcome:
    """Whether it has our form, "expected ..., got ...", on one line unless it is a list of mistakes."""
    lines = sentence.splitlines() or [""]
    ours = SEVERAL in lines[0] or (len(lines) == 1 and "expected" in sentence and "got" in sentence)
    bounded = len(lines) <= LINES and max(map(len, lines)) <= LONGEST
    unprintable = [sign for sign in sentence if unicodedata.category(sign) in ("Cc", "Cf", "Cs") and sign != "\n"]
    if not ours or unprintable or not bounded:
        why = f"unprintable {unprintable[:3]}" if unprintable else f"{len(lines)} line(s), {len(sentence)} characters"
        return Outcome("sentence", ascii(f"{why}: {sentence[:LONGEST]}"))
    return Outcome("refused", sentence)


def listing(folder: Path) -> dict[str, str]:
    """Every path below the folder, with what lies there."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    return "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()


def _peak() -> int:
    """Bytes: the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


# The process that cases run in. It may hang, die or run out of memory; another process continues.

ADDRESS_SPACE = 4 << 30  # bytes beyond what the process has when it starts


def run_cases(cases: Sequence[int | Case], seed: int, sound: Path, work: Path, conn: Connection, quiet: bool) -> None:
    """Runs the cases, by number or as they are, one after another.

    Sends of each the case before it begins and its Outcome when it has ended. quiet: drops what the product prints.
    """
    _limit(quiet)
    for given in cases:
        case = draw(given, seed, sound) if isinstance(given, int) else given
        conn.send((case.number, case.kind, case.mutation))
        began = monotonic()
        outcome = judge(case, sound, work / "case")
        conn.send(Outcome(outcome.verdict, outcome.said, monotonic() - began))
    conn.close()


def _limit(quiet: bool) -> None:
    torch.set_num_threads(1)
    most = psutil.Process().memory_info().vms + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if quiet:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(nowhere, stream.fileno())
