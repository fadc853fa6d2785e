"""How a failure reaches a person: one sentence on stderr, said by one process, and again in torchrun's own report."""

import json
import os
import sys
import time
from pathlib import Path


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
