"""Turns a dataclass with a `run` method into a command: flags from its fields, bad input as one sentence."""

import sys
from typing import Protocol

import tyro

from sidrec.schema import ContractError


class Command(Protocol):
    def run(self) -> None: ...


def run(command: type[Command], module: str) -> None:
    """Parses sys.argv and runs; `module` is what follows `python -m`.

    Bad input ends with exit status 2 and its sentence on stderr.
    """
    parsed = tyro.cli(command, prog=f"python -m {module}")
    try:
        parsed.run()
    except ContractError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
