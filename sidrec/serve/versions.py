"""The versions of a bundle in one folder, and the link to the one in use.

    BUNDLE/CURRENT -> versions/VERSION
    BUNDLE/versions/VERSION/bundle.json, arrays, graphs      named by its content; never changed

A new version is written beside the others and takes its name when it is complete; then the link is replaced. A scorer
that has opened a version keeps its files, whatever the link says.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidrec.errors import ContractError
from sidrec.io.files import to_disk
from sidrec.io.places import Place, StorePath

CURRENT, VERSIONS, DESCRIPTION = "CURRENT", "versions", "bundle.json"
PARTIAL = ".partial-"


def version_folder(path: Place) -> Path:
    """The folder of the version in use, or `path` itself if it is the folder of one; of a bundle in a store, a copy.

    Raises ContractError.
    """
    if isinstance(path, StorePath):
        from sidrec.serve.stored_bundles import copied_version

        return copied_version(path)
    if (path / DESCRIPTION).is_file():
        return path.resolve()
    found = (path / CURRENT).resolve()
    if not (found / DESCRIPTION).is_file():
        raise ContractError(path, "a bundle, as sidrec export writes it", _instead(path))
    return found


def _instead(path: Path) -> str:
    if not path.exists():
        return "nothing"
    if (path / CURRENT).is_symlink():
        return f"a link {CURRENT} to {(path / CURRENT).readlink()}, which holds no {DESCRIPTION}"
    return f"a {'folder' if path.is_dir() else 'file'} without {CURRENT} and {DESCRIPTION}"


def known_versions(bundle: Path) -> list[str]:
    """The complete versions, oldest first."""
    found = [
        path for path in (bundle / VERSIONS).glob("*") if (path / DESCRIPTION).is_file() and PARTIAL not in path.name
    ]
    return [path.name for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))]


@contextmanager
def new_version(bundle: Path) -> Iterator[Path]:
    """Yields an empty folder to fill. Call `publish` with it at the end of the block; it is removed unless published.

    Raises ContractError if `bundle` holds something else than versions of a bundle.
    """
    check_bundle_folder(bundle)
    partial = bundle / VERSIONS / f"{PARTIAL}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_bundle_folder(bundle: Path) -> None:
    """Raises ContractError unless `bundle` is a bundle, an empty folder, or not there yet."""
    if not bundle.exists():
        return
    others = (
        sorted(path.name for path in bundle.iterdir() if path.name not in (CURRENT, VERSIONS))
        if bundle.is_dir()
        else []
    )
    if others or not bundle.is_dir():
        got = f"a folder with {', '.join(others[:3])}" if others else "a file"
        raise ContractError(bundle, "a bundle, an empty folder, or a path that is not there yet", got)


def publish(bundle: Path, partial: Path, version: str) -> Path:
    """Makes a complete version of `partial` and puts it in use. One with the same name has the same content: it stays.

    Returns its folder. All bytes are on the disk before the link names them.
    """
    for path in (*partial.rglob("*"), partial):
        to_disk(path)
    folder = bundle / VERSIONS / version
    if not (folder / DESCRIPTION).is_file():
        partial.rename(folder)
        to_disk(folder.parent)
    use(bundle, version)
    return folder


def check_version(bundle: Path, version: str) -> None:
    """Raises ContractError naming the versions that there are, unless this is one of them."""
    known = known_versions(bundle)
    if version not in known:
        raise ContractError(f"{bundle}, version", f"one of {', '.join(known) or 'none'}", version)


def use(bundle: Path, version: str) -> None:
    """Replaces the link in one step. Raises ContractError naming the versions that there are."""
    check_version(bundle, version)
    link = bundle / f"{CURRENT}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(VERSIONS) / version)
    link.replace(bundle / CURRENT)
    to_disk(bundle)
