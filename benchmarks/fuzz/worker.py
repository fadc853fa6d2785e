"""The process that cases run in: it may hang, die or run out of memory, and another one goes on after it."""

import os
import resource
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic

import psutil
import torch

from benchmarks.fuzz.case import Case
from benchmarks.fuzz.draw import draw
from benchmarks.fuzz.judge import Outcome, judge

ADDRESS_SPACE = 4 << 30  # bytes beyond what the process has when it starts


def run(cases: Sequence[int | Case], seed: int, sound: Path, work: Path, conn: Connection, quiet: bool) -> None:
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
