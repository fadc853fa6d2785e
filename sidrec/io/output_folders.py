"""Where a command may write: it replaces only folders and files that commands of ours made entirely.

Refusals are ContractErrors, raised before any work and again before anything is replaced.
"""

import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sidrec.errors import ContractError
from sidrec.io.output_lock import locked
from sidrec.io.places import Place, StorePath

NAMED = 3  # foreign files listed in a message
Written = Callable[[str], bool]
"""Whether commands write a file of that name: relative to the folder, with slashes."""


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that commands write.

    what: its name in messages. written: folder -> a test for names of our files; None for a folder of another kind.
    """

    what: str
    written: Callable[[Path], Written | None]


@contextmanager
def replaced_folder(target: Path, kind: FolderKind) -> Iterator[Path]:
    """Yields an empty sibling of `target` to fill. It becomes `target` when the block ends; it is removed on errors.

    An existing `target` of this kind is replaced, and stays unchanged until then. Raises ContractError, before the
    block and again after it, if `target` must not be replaced, and if another process is writing it.
    """
    with locked(output_folder(target)):
        yield from _replaced_folder(replaceable_folder(target, kind), kind)


def _replaced_folder(folder: Path, kind: FolderKind) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    former = folder.with_name(f".{folder.name}.former-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        check_replaceable(folder, kind)
        replace_folder(partial, folder, former)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def replaceable_folder(target: Path, kind: FolderKind) -> Path:
    """The resolved target. First restores a former one that a killed replacement had renamed.

    Raises ContractError if the target must not be replaced.
    """
    folder = output_folder(target)
    for former in sorted(folder.parent.glob(f".{glob.escape(folder.name)}.former-*")):
        if kind.written(former) is not None:
            restore(folder, former)
    check_replaceable(folder, kind)
    return folder


def output_folder(out: Path, inputs: Iterable[Place] = ()) -> Path:
    """The resolved path of OUT. If OUT is a link, its target is replaced and the link stays.

    Raises ContractError if OUT is a file, lies below one or is a dangling link, and as `check_apart` does.
    """
    try:
        _check_path(out, "a folder to write")
        if out.is_symlink() and not out.exists():
            raise ContractError(
                out,
                "a folder to write",
                f"a link to {out.readlink()}, which is not there; make it or name another folder",
            )
        real = out.resolve()
        there = next(path for path in (real, *real.parents) if path.exists())
        if not there.is_dir():
            got = "a file" if there == real else f"a path below the file {there}"
            raise ContractError(out, "a folder to write", f"{got}; name another folder")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ContractError(out, "a folder to write", getattr(error, "strerror", None) or error) from None
    check_apart(real, inputs)
    return real


def _check_path(path: Path, expected: str) -> None:
    """Raises ContractError for a path that leads through a file, as FILE/../OUT does, or is no UTF-8.

    The system cannot open the first kind; pyarrow cannot write the second one.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ContractError(path, "a path in UTF-8", "other bytes; name another one") from None
    for parent in path.parents:
        if parent.is_file():
            raise ContractError(path, expected, f"a path below the file {parent}; name another one")


def check_apart(folder: Path, inputs: Iterable[Place]) -> None:
    """Raises ContractError if `folder`, a resolved path, equals, contains or lies inside an input."""
    for given in inputs:
        if isinstance(given, StorePath):
            continue
        try:
            paths = {given.parent.resolve() / given.name, given.resolve()}  # a link and its target
        except (OSError, RuntimeError) as error:
            raise ContractError(given, "an input that can be read", error) from None
        for path in paths:
            relation = _relation(folder, path)
            if relation:
                expected = "an output folder apart from the input"
                raise ContractError(folder, expected, f"{relation} {given}; name another folder")


def _relation(folder: Path, path: Path) -> str | None:
    if _same(folder, path):
        return "the input"
    if any(_same(folder, parent) for parent in path.parents):
        return "a folder that holds the input"
    if any(_same(path, parent) for parent in folder.parents):
        return "a folder inside the input"
    return None


def _same(first: Path, second: Path) -> bool:
    """Whether two paths are the same file, also on case-insensitive file systems and bind mounts."""
    try:
        return first == second or first.samefile(second)
    except OSError:
        return False


def check_replaceable(folder: Path, kind: FolderKind) -> None:
    """Raises ContractError unless the folder is absent, empty, or holds only files of its kind and no links.

    folder: as `output_folder` returns it. The current working directory is refused too.
    """
    if not folder.exists():
        return
    try:
        if _relation(folder, Path.cwd()) in ("the input", "a folder that holds the input"):
            raise ContractError(folder, "a folder to replace", "the folder that this command runs in; leave it first")
        written = kind.written(folder)
        foreign = _first_names(name for name in _files(folder) if written is None or not written(name))
    except OSError as error:
        raise ContractError(folder, "a folder to replace", error.strerror or error) from None
    if foreign and written is None:
        raise ContractError(
            folder, f"{kind.what}, or nothing, to replace", f"a folder with {foreign}; name another folder"
        )
    if foreign:
        got = f"also {foreign}; move what is to be kept, or name another folder"
        raise ContractError(folder, f"nothing but the files of {kind.what} to replace", got)


def _files(folder: Path) -> Iterator[str]:
    """Names of all files and links below the folder, sorted by folder. Raises OSError if one cannot be listed."""

    def fail(error: OSError) -> None:
        raise error

    for path, folders, files in os.walk(folder, onerror=fail):
        folders.sort()
        links = [name for name in folders if (Path(path) / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (Path(path) / name).relative_to(folder).as_posix()


def _first_names(names: Iterator[str]) -> str:
    """The first names, for a message; empty if there are none."""
    found = list(islice(names, NAMED + 1))
    return ", ".join(found[:NAMED]) + (" and more" if len(found) > NAMED else "")


def replace_folder(new: Path, folder: Path, former: Path) -> None:
    """Renames `folder` to `former`, if it exists, and `new` to `folder`. An error leaves both as they were.

    A process killed between the two renames leaves the old folder as `former`; `restore` renames it back.
    """
    try:
        if folder.exists():
            folder.rename(former)
        new.rename(folder)
    except BaseException:
        restore(folder, former)
        raise


def restore(folder: Path, former: Path) -> None:
    """Renames `former` back to `folder` after a replacement that was killed between its renames."""
    if former.exists() and not folder.exists():
        former.rename(folder)


def output_file(path: Path, what: str, is_ours: Callable[[Path], bool]) -> Path:
    """The resolved path. Raises ContractError for a folder, a dangling link, or a file that is not ours.

    what: the kind of file, in messages. is_ours: whether a file is of that kind; may raise ContractError if not.
    """
    expected = f"no such file yet, or {what} to replace"
    try:
        _check_path(path, expected)
        real = path.resolve()
        there = next(folder for folder in real.parents if folder.exists())
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links
        raise ContractError(path, expected, getattr(error, "strerror", None) or error) from None
    if not there.is_dir():
        raise ContractError(path, expected, f"a path below the file {there}; name another file")
    if path.is_symlink() and not path.exists():
        raise ContractError(path, expected, f"a link to {path.readlink()}, which is not there")
    if real.exists() and not real.is_file():
        raise ContractError(path, expected, f"{'a folder' if real.is_dir() else 'a device'}; name another file")
    if real.exists() and not _is(real, is_ours):
        raise ContractError(path, expected, "another file; name another one")
    return real


def _is(path: Path, is_ours: Callable[[Path], bool]) -> bool:
    try:
        return is_ours(path)
    except ContractError:
        return False
