"""A raw Criteo log, plain or gzip-compressed, as blocks of whole lines: one block in memory at a time."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from sidrec.schema import ContractError

GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Block:
    """Whole lines of a file, each with its newline. first_line: number of the first one in the file, from 1."""

    source: Path
    first_line: int
    text: bytes

    @property
    def lines(self) -> int:
        return self.text.count(b"\n")


def blocks(source: Path, size: int, watch: Callable[[int], object] = int) -> Iterator[Block]:
    """The lines of a file, about `size` bytes (uncompressed) at a time.

    watch: told how many bytes of the file were read since the last call. Raises ContractError for a file that is empty,
    missing or a broken gzip file, and for a line longer than `size`.
    """
    if not source.is_file():
        raise ContractError(source, "a file to read", "none")
    with source.open("rb") as file:
        compressed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=file)) if compressed else file
        line, rest, before = 1, b"", 0
        while chunk := _read(stream, size, source):
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if len(rest) > size:
                raise ContractError(f"{source}, line {line}", f"a line of at most {size} bytes", "a longer one")
            if newline:
                block = Block(source, line, whole + newline)
                yield block
                line += block.lines
            watch(file.tell() - before)
            before = file.tell()
        if rest:
            yield Block(source, line, rest + b"\n")
        elif line == 1:
            raise ContractError(source, "at least one line", "an empty file")


def _read(stream: IO[bytes], size: int, source: Path) -> bytes:
    try:
        return stream.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ContractError(source, "a whole gzip file", error) from None
