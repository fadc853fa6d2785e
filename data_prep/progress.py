"""Progress on the terminal, with the time left: bars over rows, and over the bytes of an input file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Never, cast

from tqdm import tqdm


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
