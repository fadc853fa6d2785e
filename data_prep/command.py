"""A dataclass with a `run` method as a command, and progress bars for what commands do."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import getdoc
from pathlib import Path
from typing import IO, Never, Protocol, cast

from tqdm import tqdm

from sidrec import command_line
from sidrec.errors import ContractError


class Command(Protocol):
    """What a module of data_prep does when it is run: fields are arguments, the docstring opens the help."""

    def run(self) -> None:
        """Raises ContractError for input that cannot be used."""


def run(command: type[Command], module: str, *examples: str) -> None:
    """Parses sys.argv and runs the command. Ends the process only with an exit status other than 0.

    module: the name after `python -m`. examples: arguments that the help shows. Errors and Ctrl-C: see
    `sidrec.command_line.run`.
    """
    called = Path(sys.argv[0]).name
    program = called if called.startswith("sidrec prep ") else f"python -m {module}"
    about = getdoc(command) or ""
    if examples:
        about = command_line.describe(about, *(f"{program} {words}" for words in examples))
    status = command_line.run(lambda: command_line.parse(command, sys.argv[1:], program, about).run())
    if status:
        sys.exit(status)


def refuse_flags(rules: Mapping[str, tuple[bool, str, object]]) -> None:
    """Raises ContractError for the first flag whose value cannot be used.

    rules: flag -> whether its value is valid, what was expected, the value.
    """
    for flag, (valid, expected, got) in rules.items():
        if not valid:
            raise ContractError(flag, expected, got)


def rows_bar(what: str, rows: int) -> "tqdm[Never]":
    """A progress bar over rows; silent where stderr is no terminal."""
    return tqdm(total=rows, desc=what, unit="row", unit_scale=True, disable=None)


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading, with a progress bar over its (compressed) bytes."""
    with (
        path.open("rb") as file,
        tqdm.wrapattr(file, "read", total=path.stat().st_size, desc=path.name, disable=None) as watched,
    ):
        yield cast(IO[bytes], watched)
