"""Every error that a user meets, as siblings under `SidrecError`.

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
    """Base of all errors below. What a message quotes is made printable, and long lists are cut."""

    def __init__(self, message: str) -> None:
        super().__init__(quoted_lines(message))


class ConfigError(SidrecError, ValueError):
    """A recipe or flags that cannot be used; the message lists every mistake."""


class ContractError(SidrecError, ValueError):
    """Data that breaks the contract (`sidrec.schema`), or a file that is not what it should be."""

    def __init__(self, where: object, expected: str, got: object) -> None:
        # All three are the exception's arguments, so that it can be pickled out of a worker process.
        Exception.__init__(self, quoted(where), quoted(expected), quoted(got))

    def __str__(self) -> str:
        return "{}: expected {}, got {}".format(*self.args)


class CheckpointError(SidrecError):
    """A checkpoint that cannot be read or written, or that belongs to another model."""


class PlanError(SidrecError):
    """No sharding plan satisfies the recipe on these ranks."""


class NoPlanError(PlanError):
    """The tables do not fit the hardware; the message says by how many bytes, and what would make them fit."""


class PreflightError(SidrecError):
    """A run that would end badly, found before anything was allocated."""


class InstallationError(SidrecError, RuntimeError):
    """torch, FBGEMM and torchrec do not belong together; the message ends with the command that repairs it."""


class DisagreementError(SidrecError):
    """Ranks differ in versions, code, recipe or data; the message names the rank and both values."""


class TrainingError(SidrecError, RuntimeError):
    """Training, or the fit of a tokenizer, cannot go on. The message says why, and what to try."""


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
    """An outcome that somebody asked for, such as a stop by SIGTERM: printed as an error is, but called none."""


class ReportedElsewhereError(Exception):
    """Marks an error that another rank already reported: this process prints nothing."""


class RankError(ReportedElsewhereError, SidrecError):
    """Another rank failed; the message carries that rank's message."""


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
        Path(error_file).write_text(json.dumps({"message": {"message": f"{error}", "extraInfo": extra}}))
