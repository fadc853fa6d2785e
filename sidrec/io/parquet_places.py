"""Parquet files in places: footers, whole files, and row groups of objects that are read ahead and kept on local disk.

A row group of an object is a part of it: the bytes of the columns that are wanted, in a few ranges that its footer
tells. `RowGroupCache` keeps such parts in the session's folder (`sidrec.io.local_cache`), where the loader's workers
and the ranks of a machine share them, and drops those that were used least recently when they exceed its bound.
"""

import fcntl
import io
import json
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.io.files import replaced_file
from sidrec.io.local_cache import READERS, kept, name_of, session
from sidrec.io.places import BLOCK, Place, StoreError, StoreFile, StorePath, put

TAIL = 64 << 10  # bytes: holds most footers
GAP = 1 << 20  # bytes between two columns that are read with them
GROUPS_AHEAD = 2  # row groups that are fetched at a time
OPEN_FILES = 64
GROUPS = "groups"  # folder of a session
PARQUET_END = 8  # bytes after a footer: its length and PAR1


def read_footer(path: Place) -> pq.FileMetaData:
    """The footer of a Parquet file. That of an object is read once by a session.

    Raises pa.ArrowException or OSError for a file that is none, StoreError for an object that is not there.
    """
    return footer_of(path, session()).metadata if isinstance(path, StorePath) else pq.read_metadata(path)


def open_parquet(path: Place, **settings: Any) -> pq.ParquetFile:
    """Opens a file or object; each read of an object is a request. settings: of pq.ParquetFile. Raises as
    `read_footer`."""
    if not isinstance(path, StorePath):
        return pq.ParquetFile(path, **settings)
    stored = StoreFile(path)
    return pq.ParquetFile(_source(stored.size, stored.read), **settings)


def open_bytes(path: Place) -> pa.NativeFile:
    """A file or object for pyarrow's readers, such as that of CSV. Raises OSError or StoreError."""
    if not isinstance(path, StorePath):
        return pa.OSFile(str(path))
    stored = StoreFile(path)
    return _source(stored.size, stored.read)


def write_parquet(table: pa.Table, path: Place) -> None:
    """Writes a table in one step: readers see the file or object whole. Raises OSError or StoreError."""
    if not isinstance(path, StorePath):
        with replaced_file(path, durable=True, one_writer=True) as partial:
            pq.write_table(table, partial)
        return
    content = io.BytesIO()
    pq.write_table(table, content)
    put(path, content.getvalue())


class _Reader(io.RawIOBase):
    """A file to pyarrow: reads by a function from an offset and a number of bytes."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size, self._read, self._place = size, read, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def read(self, count: int | None = -1) -> bytes:
        left = self._size - self._place
        wanted = left if count is None or count < 0 else min(count, left)
        found = self._read(self._place, wanted) if wanted > 0 else b""
        self._place += len(found)
        return found


def _source(size: int, read: Callable[[int, int], bytes]) -> pa.PythonFile:
    return pa.PythonFile(_Reader(size, read), "r")


# Footers.


class Footer(NamedTuple):
    """size, version: of the object when the session first read it."""

    size: int
    version: str
    metadata: pq.FileMetaData


@lru_cache(maxsize=1024)
def footer_of(path: StorePath, folder: Path) -> Footer:
    """The footer of an object, as the session in `folder` has read it first: two requests. Raises as `read_footer`."""
    (folder / "footers").mkdir(exist_ok=True)
    raw = kept(folder / "footers" / name_of(path), TAIL, lambda partial: _write_footer(path, partial)).read_bytes()
    head, _, tail = raw.partition(b"\n")
    facts = json.loads(head)
    size, first = facts["size"], facts["size"] - len(tail)

    def read(start: int, count: int) -> bytes:
        if start < first:
            raise OSError(f"{path}: no Parquet file: its footer does not end it")
        return tail[start - first : start - first + count]

    return Footer(size, facts["version"], pq.read_metadata(_source(size, read)))


def _write_footer(path: StorePath, partial: Path) -> None:
    with StoreFile(path) as stored:
        count = min(TAIL, stored.size)
        tail = stored.read(stored.size - count, count)
        footer = int.from_bytes(tail[-PARQUET_END:-4], "little") + PARQUET_END
        if tail[-4:] == b"PAR1" and count < footer <= stored.size:
            tail = stored.read(stored.size - footer, footer)
        head = json.dumps({"size": stored.size, "version": stored.version})
        partial.write_bytes(head.encode() + b"\n" + tail)


class Range(NamedTuple):
    """Bytes of an object."""

    first: int
    size: int


def ranges_of(footer: pq.FileMetaData, group: int, columns: Sequence[str]) -> list[Range]:
    """Where the columns of a row group lie, ascending; ranges that are less than a GAP apart are one."""
    wanted, found = set(columns), []
    row_group = footer.row_group(group)
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        if column.path_in_schema.partition(".")[0] in wanted:
            first = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset is not None:
                first = min(first, column.dictionary_page_offset)
            found.append(Range(first, column.total_compressed_size))
    joined: list[Range] = []
    for each in sorted(found):
        if joined and each.first - sum(joined[-1]) <= GAP:
            first = joined.pop().first
            joined.append(Range(first, each.first + each.size - first))
        else:
            joined.append(each)
    return joined


# Row groups.


@dataclass
class RowGroupCache:
    """Row groups of objects on local disk. A copy in another process, as pickle makes it, shares them.

    folder: of the session. bound: most bytes of row groups there, over all processes. columns: those that are read.
    """

    folder: Path
    bound: int
    columns: tuple[str, ...]
    _coming: dict[tuple[StorePath, int], Future[None]] = field(default_factory=dict, init=False, repr=False)
    _files: OrderedDict[StorePath, StoreFile] = field(default_factory=OrderedDict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _pools: list[ThreadPoolExecutor] = field(default_factory=list, init=False, repr=False)

    def __reduce__(self) -> tuple[type, tuple[Path, int, tuple[str, ...]]]:
        return RowGroupCache, (self.folder, self.bound, self.columns)

    def file(self, path: StorePath, group: int) -> pq.ParquetFile:
        """A Parquet file of which this row group's columns can be read. Raises StoreError and as `read_footer`."""
        coming = self._coming.pop((path, group), None)
        if coming is not None:
            coming.result()
        footer = footer_of(path, self.folder)
        ranges = ranges_of(footer.metadata, group, self.columns)
        content = self._part(path, footer, ranges)

        def read(first: int, count: int) -> bytes:
            start = 0
            for each in ranges:
                if each.first <= first and first + count <= sum(each):
                    return bytes(content[start + first - each.first :][:count])
                start += each.size
            return self._opened(path, footer).read(first, count)  # a column's size that an old writer understated

        return pq.ParquetFile(_source(footer.size, read), metadata=footer.metadata, pre_buffer=False)

    def ahead(self, groups: Iterable[tuple[StorePath, int]]) -> None:
        """Begins to fetch row groups that will be asked for, in this order; their errors are raised by `file`."""
        for path, group in groups:
            if (path, group) not in self._coming:
                self._coming[path, group] = self._pool(0).submit(self._fetch, path, group)

    def forget(self) -> None:
        """Cancels what `ahead` has not begun."""
        for coming in self._coming.values():
            coming.cancel()
        self._coming.clear()

    def _fetch(self, path: StorePath, group: int) -> None:
        footer = footer_of(path, self.folder)
        ranges = ranges_of(footer.metadata, group, self.columns)
        if sum(each.size for each in ranges) <= self.bound:
            self._part(path, footer, ranges)

    def _part(self, path: StorePath, footer: Footer, ranges: list[Range]) -> memoryview:
        """The bytes of the ranges, end to end."""
        size = sum(each.size for each in ranges)
        if size > self.bound:
            return memoryview(self._read(path, footer, ranges))
        (self.folder / GROUPS).mkdir(exist_ok=True)
        target = self.folder / GROUPS / name_of(path, footer.version, ranges)

        def write(partial: Path) -> None:
            content = self._read(path, footer, ranges)
            make_room(target.parent, self.bound - size)
            partial.write_bytes(content)

        while True:
            kept(target, size, write)
            with suppress(FileNotFoundError):  # dropped meanwhile by another process
                os.utime(target)
                return _mapped(target)

    def _read(self, path: StorePath, footer: Footer, ranges: list[Range]) -> bytes:
        stored = self._opened(path, footer)
        pieces = [
            (first, min(BLOCK, sum(each) - first)) for each in ranges for first in range(each.first, sum(each), BLOCK)
        ]
        return b"".join(self._pool(1).map(lambda piece: stored.read(*piece), pieces))

    def _opened(self, path: StorePath, footer: Footer) -> StoreFile:
        with self._lock:
            if path in self._files:
                self._files.move_to_end(path)
                return self._files[path]
        stored = StoreFile(path)
        if (stored.size, stored.version) != (footer.size, footer.version):
            raise StoreError(path, "the object that was there at the start", "another one in its place")
        with self._lock:
            self._files[path] = stored
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return stored

    def _pool(self, kind: int) -> ThreadPoolExecutor:
        """0: fetches row groups. 1: sends the requests of all of them."""
        with self._lock:
            if not self._pools:
                self._pools += [ThreadPoolExecutor(GROUPS_AHEAD), ThreadPoolExecutor(READERS)]
            return self._pools[kind]


def _parts(folder: Path) -> list[tuple[int, int, Path]]:
    """Time of last use, bytes and path of the parts in a folder."""
    found = []
    for each in os.scandir(folder):
        with suppress(FileNotFoundError):
            if not each.name.startswith(".") and ".partial" not in each.name:
                found.append((each.stat().st_mtime_ns, each.stat().st_size, Path(each.path)))
    return found


def bytes_of_groups(folder: Path) -> int:
    """Bytes of row groups that the session in `folder` keeps."""
    return sum(size for _, size, _ in _parts(folder / GROUPS)) if (folder / GROUPS).is_dir() else 0


def make_room(folder: Path, bound: int) -> None:
    """Removes the parts in a folder that were used least recently, until they have at most `bound` bytes."""
    opened = os.open(folder / ".room.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        found = _parts(folder)
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= bound:
                return
            path.unlink(missing_ok=True)
            total -= size
    finally:
        os.close(opened)


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
