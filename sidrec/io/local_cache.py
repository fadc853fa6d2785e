"""Copies of objects on local disk, for as long as the processes run that read them.

    local_file(place("s3://bucket/shop/items.parquet"))  -> a path that other libraries open

All processes of a run on one machine share a folder, sidrec-cache-UID-NUMBER in $SIDREC_CACHE or else the folder for
temporary files. Each holds a lock of it. The last one to end removes it; if all were killed, the next command that
reads a store does. Copies are named by the object's URI and version, so that a changed object has another copy.
"""

import atexit
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from sidrec.errors import ContractError
from sidrec.io.files import replaced_file
from sidrec.io.places import BLOCK, Place, StoreFile, StorePath
from sidrec.text import byte_size

IN_USE = "in_use"  # file whose lock every process of a session holds
READERS = 8  # requests of one process at a time
_sessions: dict[int, Path] = {}  # process -> its folder


def local_file(path: Place) -> Path:
    """The file itself if it is local, otherwise a copy of the object, made once. Raises StoreError or ContractError."""
    if not isinstance(path, StorePath):
        return path
    with StoreFile(path) as stored:
        folder = session() / "files" / name_of(path, stored.version)
        folder.mkdir(parents=True, exist_ok=True)
        return kept(folder / path.name, stored.size, lambda partial: download(stored, partial))


def session() -> Path:
    """The folder of this process's run; made, and locked until the process ends, when it is first asked for.

    Under torchrun the ranks of a machine have one folder. Raises ContractError if it cannot be made.
    """
    process = os.getpid()
    if process not in _sessions:
        root = Path(os.environ.get("SIDREC_CACHE") or tempfile.gettempdir())
        prefix = f"sidrec-cache-{os.getuid()}-"
        owner = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else process
        folder = root / f"{prefix}{owner}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            remove_abandoned(root, prefix)
            opened = _enter(folder)
        except OSError as error:
            expected = "a folder for copies of objects; SIDREC_CACHE names another one"
            raise ContractError(folder, expected, error.strerror or error) from None
        _sessions[process] = folder
        atexit.register(_leave, process, folder, opened)
    return _sessions[process]


def remove_abandoned(root: Path, prefix: str) -> None:
    """Removes the folders of sessions whose processes have all ended without removing them."""
    for folder in root.glob(f"{prefix}*"):
        with suppress(OSError):
            opened = os.open(folder / IN_USE, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if os.fstat(opened).st_uid == os.getuid():
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(opened)


def _enter(folder: Path) -> int:
    """A descriptor that holds the session's lock. Raises OSError."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"the folder belongs to another user: {folder}")
        try:
            opened = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # removed meanwhile by the last process of an earlier session
            continue
        fcntl.flock(opened, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat((folder / IN_USE).stat(), os.fstat(opened)):
                return opened
        os.close(opened)


def _leave(process: int, folder: Path, opened: int) -> None:
    if process != os.getpid():  # a fork
        return
    with suppress(OSError):
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while another process of the session runs
        shutil.rmtree(folder)
    os.close(opened)


# One copy.


def name_of(path: StorePath, *parts: object) -> str:
    """The name of a copy. parts: what it is a copy of, besides the URI."""
    return hashlib.sha256("\n".join(map(str, (path, *parts))).encode()).hexdigest()[:32]


def kept(target: Path, size: int, write: Callable[[Path], None]) -> Path:
    """`target`, written by one process while others wait. It appears when it is whole. size: bytes it will have.

    Raises ContractError if the disk has no room, and what `write` raises.
    """
    if target.is_file():
        return target
    with only_one(target):
        if not target.is_file():
            free = shutil.disk_usage(target.parent).free
            if free < size:
                expected = f"room for {byte_size(size)} of copies; SIDREC_CACHE names another folder"
                raise ContractError(target.parent, expected, f"{byte_size(free)} free")
            with replaced_file(target) as partial:
                write(partial)
    return target


@contextmanager
def only_one(target: Path) -> Iterator[None]:
    """Holds the lock of a copy, which ends with its process."""
    opened = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def download(stored: StoreFile, partial: Path) -> None:
    """Writes the object's bytes to a new file. Raises OSError or StoreError."""
    with partial.open("wb") as file, ThreadPoolExecutor(READERS) as pool:
        file.truncate(stored.size)

        def copy(first: int) -> None:
            os.pwrite(file.fileno(), stored.read(first, min(BLOCK, stored.size - first)), first)

        list(pool.map(copy, range(0, stored.size, BLOCK)))
