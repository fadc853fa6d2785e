"""Turns a dataclass with a `run` method into a command: flags from its fields, bad input as one sentence."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Never, Protocol, cast

import tyro
from tqdm import tqdm

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

    Bad input ends with exit status 2 and its sentence on stderr.
    """
    parsed = tyro.cli(command, prog=f"python -m {module}")
    try:
        parsed.run()
    except ContractError as error:
        print(f"sidrec: error: {error}", file=sys.stderr)
        sys.exit(2)


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
