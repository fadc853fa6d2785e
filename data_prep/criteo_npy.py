"""A .npy file that grows by rows and has its name only once it is whole, and its rows in parts."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

import numpy as np


class GrowingNpy:
    """Context manager that `append` adds rows to. The file appears under `path` when the context ends without error.

    Bytes are those of np.save on all rows together: numpy pads the header so that the number of rows can grow.
    """

    def __init__(self, path: Path, width: int, dtype: type[np.generic]) -> None:
        self.path, self._width, self._dtype = path, width, np.dtype(dtype)
        self._partial = path.with_name(path.name + ".partial")
        self._rows = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._file = self._partial.open("wb")
        self._write_header()
        return self

    def append(self, rows: np.ndarray) -> None:
        """rows: [N, width] of the file's type."""
        assert (rows.shape[1], rows.dtype) == (self._width, self._dtype), (rows.shape, rows.dtype)
        cast(IO[bytes], self._file).write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with cast(IO[bytes], self._file) as file:
            if kind is None:
                file.seek(0)
                self._write_header()
                file.flush()
                os.fsync(file.fileno())
        if kind is None:
            self._partial.replace(self.path)
        else:
            self._partial.unlink()

    def _write_header(self) -> None:
        facts = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._rows, self._width)}
        np.lib.format.write_array_header_1_0(cast(IO[bytes], self._file), facts)


def parts_of(path: Path, rows: int) -> Iterator[np.ndarray]:
    """The rows of a file that GrowingNpy wrote, `rows` at a time; not mapped, as mapped pages count as memory."""
    with path.open("rb") as file:
        width, dtype = _read_header(file)
        while len(part := np.fromfile(file, dtype, rows * width)):
            yield part.reshape(-1, width)


def rows_of(path: Path, first: int, rows: int) -> np.ndarray:
    """The rows [first, first + rows) of a file that GrowingNpy wrote."""
    with path.open("rb") as file:
        width, dtype = _read_header(file)
        skipped = first * width * dtype.itemsize
        return np.fromfile(file, dtype, rows * width, offset=skipped).reshape(rows, width)


def _read_header(file: IO[bytes]) -> tuple[int, np.dtype]:
    """Width and type; the file is then at its first row."""
    np.lib.format.read_magic(file)
    (_, width), _, dtype = np.lib.format.read_array_header_1_0(file)
    return width, dtype


def fingerprint(path: Path) -> dict[str, object]:
    """Size and sha256 of a file, for a manifest."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
