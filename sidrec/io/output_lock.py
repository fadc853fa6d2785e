"""One command at a time writes an output.

A lock ends with its process, also by SIGKILL. On a file system without locks, or where no file can be made, nothing is
locked and the commands go on. The processes of several machines see each other's locks if their file system does (NFS).
"""

import fcntl
import os
import socket
import stat
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sidrec.errors import ContractError

MARK = "locked by sidrec, process "
POLL = 0.1  # seconds between two attempts
_held: set[Path] = set()  # by this process, which does not wait for itself


class OutputLock:
    """The lock of an output: of a hidden file .NAME.lock beside it, or of the folder itself.

    The file exists while the lock is held. A killed process leaves one; the next command takes it over and removes it.
    A file of that name that sidrec did not write is locked and stays as it is. The lock ends with this object, if
    nobody releases it before.
    """

    def __init__(self, out: Path, *, in_place: bool = False) -> None:
        """out: a file or folder, which need not exist. in_place: lock the folder `out`, which is never replaced."""
        self._out, self._in_place = out, in_place
        self._release: weakref.finalize[..., OutputLock] | None = None

    def take(self, patience: float = 0.0) -> None:
        """Takes the lock, unless this process has it already; makes missing parents of `out`. Released at exit.

        patience: seconds to wait for a process that is ending. Raises ContractError if another process still has the
        lock then. With `in_place`, a folder that is not there is not locked.
        """
        path = _path(self._out, self._in_place)
        if path is None or path in _held:
            return
        made = [] if self._in_place else make_parents(path)
        try:
            found = self._wait(path, patience)
        except BaseException:
            remove_empty(made)
            raise
        if found is None:
            remove_empty(made)
            return
        _held.add(path)
        self._release = weakref.finalize(self, _let_go, os.getpid(), path, *found, made)

    def _wait(self, path: Path, patience: float) -> tuple[int, bool] | None:
        deadline = time.monotonic() + patience
        while True:
            try:
                return _attempt(path, self._in_place)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    expected = "an output that no other command is writing"
                    got = f"one that {_holder(path)} writes; wait until it ends"
                    raise ContractError(self._out, expected, got) from None
            time.sleep(POLL)

    def release(self) -> None:
        """Gives the lock back, if it is held; removes its file, and the parents that it made if they are empty."""
        if self._release is not None:
            self._release()


@contextmanager
def locked(*outs: Path, patience: float = 0.0) -> Iterator[None]:
    """Holds the locks of these outputs. Raises ContractError if another process has one of them."""
    locks = [OutputLock(out) for out in outs]
    try:
        for lock in locks:
            lock.take(patience)
        yield
    finally:
        for lock in locks:
            lock.release()


def _path(out: Path, in_place: bool) -> Path | None:
    """What is locked. None for a folder that does not exist, and for a path that cannot be resolved."""
    try:
        real = out.resolve()
        return (real if real.is_dir() else None) if in_place else real.with_name(f".{real.name}.lock")
    except (OSError, RuntimeError, ValueError):  # a loop of links; the root, which has no name
        return None


def make_parents(path: Path) -> list[Path]:
    """Makes the missing folders around `path`. Returns them, the deepest first; none if one cannot be made."""
    with suppress(OSError):
        missing = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        return missing
    return []


def _attempt(path: Path, in_place: bool) -> tuple[int, bool] | None:
    """A descriptor that has the lock, and whether its file is ours to remove. None where nothing can be locked.

    Raises BlockingIOError if another process has the lock.
    """
    try:
        opened, own = (os.open(path, os.O_RDONLY), False) if in_place else _open(path)
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(path.stat(), os.fstat(opened)):  # its holder removed the file meanwhile
            raise FileNotFoundError(path)
    except BlockingIOError:
        os.close(opened)
        raise
    except FileNotFoundError:
        os.close(opened)
        return _attempt(path, in_place)
    except OSError:  # no locks here
        _close(opened, path if own else None)
        return None
    if not in_place:
        own = own or os.pread(opened, len(MARK), 0) == MARK.encode()
    if own:
        os.ftruncate(opened, 0)
        os.pwrite(opened, f"{MARK}{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return opened, own


def _open(path: Path) -> tuple[int, bool]:
    """A descriptor of the lock's file, and whether it was made. Raises OSError for a link and anything but a file."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        opened = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(f"{path} is no file")
    return opened, False


def _holder(path: Path) -> str:
    """Who has the lock, for a message."""
    text = ""
    with suppress(OSError, UnicodeDecodeError):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return f"process {text.removeprefix(MARK).strip()}" if text.startswith(MARK) else "another process"


def _let_go(process: int, path: Path, opened: int, own: bool, made: Sequence[Path]) -> None:
    """Removes the file while it is locked, so that no other process locks a file that is about to go."""
    _held.discard(path)
    if process != os.getpid():  # a fork of the holder
        return
    _close(opened, path if own else None)
    remove_empty(made)


def _close(opened: int, file: Path | None) -> None:
    if file is not None:
        with suppress(OSError):
            file.unlink()
    os.close(opened)


def remove_empty(folders: Sequence[Path]) -> None:
    """Removes those that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
