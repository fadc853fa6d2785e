"""Turns a dataclass with a `run` method into a command: flags from its fields, bad input as one sentence."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import getdoc
from pathlib import Path
from typing import IO, Never, Protocol, cast

from tqdm import tqdm

from sidrec import command_line
from sidrec.schema import ContractError


class Command(Protocol):
    def run(self) -> None: ...


def refuse_flags(rules: Mapping[str, tuple[bool, str, object]]) -> None:
    """Raises ContractError for the first flag whose value makes no sense.

    rules: flag -> whether its value is fine, what was expected, what was given.
    """
    for flag, (fine, expected, got) in rules.items():
        if not fine:
            raise ContractError(flag, expected, got)


def run(command: type[Command], module: str) -> None:
    """Parses sys.argv and runs; `module` is what follows `python -m`.

    Ends the process with exit status 2 after bad input, and one message on stderr; with 130 after Ctrl-C.
    """
    called = Path(sys.argv[0]).name
    program = called if called.startswith("sidrec prep ") else f"python -m {module}"

    def parse_and_run() -> None:
        command_line.parse(command, sys.argv[1:], program, getdoc(command) or "").run()

    status = command_line.run(parse_and_run)
    if status:
        sys.exit(status)


# Progress on the terminal, with the time left: bars over rows, and over the bytes of an input file.


def rows_bar(what: str, rows: int) -> "tqdm[Never]":
    """A bar over rows; silent where stderr is no terminal."""
    return tqdm(total=rows, desc=what, unit="row", unit_scale=True, disable=None)


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading, with a bar over its (compressed) bytes."""
    with (
        path.open("rb") as file,
        tqdm.wrapattr(file, "read", total=path.stat().st_size, desc=path.name, disable=None) as watched,
    ):
        yield cast(IO[bytes], watched)
