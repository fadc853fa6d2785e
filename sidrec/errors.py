"""All errors that are shown to users, siblings under `SidrecError`.

A message is one clear sentence: where, what was expected, what was found, and what to do. The command line prints it
without a traceback; SIDREC_TRACEBACK=1 shows the traceback too.
"""

import json
import os
import sys
import time
from pathlib import Path

from sidrec.text import quoted, quoted_lines


class SidrecError(Exception):
    """Base of all errors below. Makes the message printable and cuts long lists."""

    def __init__(self, message: str) -> None:
        super().__init__(quoted_lines(message))


class ConfigError(SidrecError, ValueError):
    """A recipe or flags that cannot be used; the message lists every mistake."""


class ContractError(SidrecError, ValueError):
    """Data that breaks the contract (`sidrec.schema`), or a file of the wrong kind or content."""

    def __init__(self, where: object, expected: str, got: object) -> None:
        # All three are the exception's arguments, so that a worker process can pickle it.
        Exception.__init__(self, quoted(where), quoted(expected), quoted(got))

    def __str__(self) -> str:
        return "{}: expected {}, got {}".format(*self.args)


class CheckpointError(SidrecError):
    """A checkpoint that cannot be read or written, or that belongs to another model."""


class PlanError(SidrecError):
    """No sharding plan satisfies the recipe on these ranks."""


class NoPlanError(PlanError):
    """The tables do not fit the hardware. The message names the missing bytes and ways to make them fit."""


class PreflightError(SidrecError):
    """A problem of a run that was found before anything was allocated."""


class InstallationError(SidrecError, RuntimeError):
    """Versions of torch, FBGEMM and torchrec do not match; the message ends with the command that repairs it."""


class DisagreementError(SidrecError):
    """Ranks differ in versions, code, recipe or data; the message names the rank and both values."""


class TrainingError(SidrecError, RuntimeError):
    """Training, or the fit of a tokenizer, cannot go on. The message names the cause and a remedy."""


class NonFiniteError(TrainingError):
    """A loss or gradient is not finite; the message names the step, the tensor and the rows of the batch."""


class DivergedError(TrainingError):
    """The loss of a tokenizer's training is not finite."""


class CollapseError(TrainingError):
    """After a fit, almost no code of a codebook is in use."""


class HangError(TrainingError):
    """Ranks make no progress; the message says which are behind, and where."""


class LostRankError(TrainingError):
    """Another rank ended without a message: the connections to it broke."""


class Notice(Exception):  # noqa: N818
    """An outcome that a user asked for, such as a stop by SIGTERM: printed on stderr, without "error"."""


class ReportedElsewhereError(Exception):
    """Marks an error that another rank already reported: this process prints nothing."""


class RankError(ReportedElsewhereError, SidrecError):
    """Another rank failed; the message carries that rank's message."""


printed_warnings: list[str] = []
"""Warnings of this command so far, for the record of a run."""


def print_warning(message: str) -> None:
    """Prints a message on stderr about something that is used although it is probably not what is meant."""
    printed_warnings.append(message)
    print(f"sidrec: warning: {message}", file=sys.stderr)


def print_error(error: Exception) -> None:
    """Prints the message on stderr, unless another rank reports it, and hands it to torchrun.

    torchrun ends with a summary of every rank that failed. It takes the message from TORCHELASTIC_ERROR_FILE.
    """
    line = f"sidrec: {error}" if isinstance(error, Notice) else f"sidrec: error: {error}"
    if not isinstance(error, ReportedElsewhereError):
        print(line, file=sys.stderr, flush=True)
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file:
        extra = {"py_callstack": line, "timestamp": str(int(time.time()))}
        Path(error_file).write_text(
            json.dumps({"message": {"message": f"{error}", "extraInfo": extra}}), encoding="utf-8"
        )
