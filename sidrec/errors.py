"""Sentences that say what is wrong; what they quote is printable, and no longer than anybody reads."""

import json
import os
import reprlib
import sys
import time
from collections.abc import Iterable
from pathlib import Path

LONGEST = 1000  # characters quoted
LONGEST_KEY = 60  # characters of a key
LINES = 40  # of a list of mistakes
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6
_SHORT.maxlevel = 3


def quoted(found: object) -> str:
    """In one line: other white space than blanks becomes a blank, and what no terminal should obey is escaped."""
    text = " ".join(str(found).splitlines())
    line = "".join(map(_printable, text[: LONGEST + 1]))
    if len(line) <= LONGEST:
        return line
    end = f" ... ({len(text):,} characters)"
    return line[: LONGEST - len(end)] + end


def quoted_lines(message: str) -> str:
    """The same for a message that may have several lines."""
    lines = message.splitlines()
    more = [f"  ... and {len(lines) - LINES:,} lines more"] if len(lines) > LINES else []
    return "\n".join([*map(quoted, lines[:LINES]), *more])


def short_repr(value: object) -> str:
    """repr, of large or deep values only their beginnings: what YAML aliases repeat would fill the memory."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return f"a {type(value).__name__} of too many digits"


def place(steps: Iterable[object]) -> str:
    """The dotted path to a value, as pydantic's `loc` has it; of keys that are texts, their beginnings."""
    return ".".join(name if len(name) <= LONGEST_KEY else f"{name[:LONGEST_KEY]}..." for name in map(str, steps))


def _printable(sign: str) -> str:
    return sign if sign.isprintable() else ascii(sign)[1:-1]


class ContractError(ValueError):
    """Data that breaks the contract. The message says where, what was expected and what was found."""

    def __init__(self, where: object, expected: str, got: object) -> None:
        # The arguments again: so it can leave a worker process.
        super().__init__(quoted(where), quoted(expected), quoted(got))

    def __str__(self) -> str:
        return "{}: expected {}, got {}".format(*self.args)


# How a failure reaches a person: one sentence on stderr, said by one process, and again in torchrun's own report.


class SaidElsewhereError(Exception):
    """Mixed into the error of a process that only follows another one, which says the sentence."""


class LearningError(RuntimeError):
    """A training that cannot end well. The message says why, and what to try."""


def say(error: Exception) -> None:
    """Prints the error's sentence, unless another process does, and hands it to torchrun.

    torchrun ends with a report on every rank that failed; what a rank left in TORCHELASTIC_ERROR_FILE stands in it.
    """
    if not isinstance(error, SaidElsewhereError):
        print(f"sidrec: {error}", file=sys.stderr, flush=True)
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:
        times = {"py_callstack": f"sidrec: {error}", "timestamp": str(int(time.time()))}
        Path(report).write_text(json.dumps({"message": {"message": f"{error}", "extraInfo": times}}))
