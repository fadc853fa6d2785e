"""Bundles in object stores: published by a pointer that is written last, opened as checked copies on local disk.

    BUNDLE/versions/VERSION/...      files, then bundle.json: a version without it is not complete
    BUNDLE/CURRENT                   text "versions/VERSION": the version in use

A copy lies in the session's folder (`sidrec.io.local_cache`). Each file is compared with its checksum in bundle.json
when it is fetched; a file that an earlier version's copy has is not fetched again.
"""

import json
import os
import shutil
import uuid
from pathlib import Path

from sidrec.errors import ContractError
from sidrec.io.local_cache import download, name_of, only_one, session
from sidrec.io.places import StoreFile, StorePath, listed, put
from sidrec.serve.versions import CURRENT, DESCRIPTION, PARTIAL, VERSIONS

COPIES = 2  # versions of a bundle that stay on local disk: the one in use, and the one before
REMEDY = "export the bundle again"


def copied_version(bundle: StorePath) -> Path:
    """A local copy of the version in use, or of `bundle` itself if it is a version. Two requests if it is there.

    Raises ContractError if there is no bundle, or if a file is not the one that was exported.
    """
    version = _version_of(bundle)
    copies = session() / "bundles" / name_of(version.parent)
    copies.mkdir(parents=True, exist_ok=True)
    with only_one(copies / VERSIONS):  # a version's copy is linked to those of others
        if not (copies / version.name / DESCRIPTION).is_file():
            _copy(version, copies)
        os.utime(copies / version.name)
        _drop_older(copies)
    return copies / version.name


def _version_of(bundle: StorePath) -> StorePath:
    pointer = bundle / CURRENT
    if not pointer.is_file():
        if (bundle / DESCRIPTION).is_file():
            return bundle
        raise ContractError(bundle, "a bundle, as sidrec export writes it", f"no {CURRENT} and no {DESCRIPTION}")
    folder, _, version = pointer.read_bytes().decode(errors="replace").strip().partition("/")
    if folder != VERSIONS or not version or "/" in version or version.startswith("."):
        raise ContractError(pointer, f"{VERSIONS}/VERSION", f"{folder}/{version}; {REMEDY}")
    return bundle / VERSIONS / version


def _copy(version: StorePath, copies: Path) -> None:
    from sidrec.serve.bundle import Description, inside

    partial = copies / f"{PARTIAL}{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        (partial / DESCRIPTION).write_bytes((version / DESCRIPTION).read_bytes())
        about = Description.read(partial)
        if about.version != version.name:
            raise ContractError(version / DESCRIPTION, f"version {version.name}", f"{about.version}; {REMEDY}")
        there = _files_by_hash(copies)
        for name, expected in about.files.items():
            target = inside(partial, name, partial / DESCRIPTION)
            target.parent.mkdir(parents=True, exist_ok=True)
            if expected.sha256 in there:
                os.link(there[expected.sha256], target)
                continue
            with StoreFile(version / name) as stored:
                if stored.size != expected.bytes:
                    raise ContractError(version / name, f"{expected.bytes:,} bytes", f"{stored.size:,}; {REMEDY}")
                download(stored, target)
            expected.check(target, REMEDY)
        partial.rename(copies / version.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _files_by_hash(copies: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for description in copies.glob(f"*/{DESCRIPTION}"):
        if not description.parent.name.startswith("."):
            files = json.loads(description.read_bytes())["files"]
            found |= {of["sha256"]: description.parent / name for name, of in files.items()}
    return found


def _drop_older(copies: Path) -> None:
    """Scorers that have opened a version keep its files."""
    versions = [path for path in copies.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(versions, key=lambda path: path.stat().st_mtime_ns)[:-COPIES]:
        shutil.rmtree(path, ignore_errors=True)


def check_stored_bundle(bundle: StorePath) -> None:
    """Raises ContractError if there are objects below `bundle` that are not those of a bundle."""
    names = {entry.name.partition("/")[0] for entry in listed(bundle)} - {CURRENT, VERSIONS}
    if names:
        raise ContractError(bundle, "a bundle, or no objects yet", f"objects below it: {', '.join(sorted(names)[:3])}")


def publish_in_store(folder: Path, version: str, bundle: StorePath) -> None:
    """Uploads the complete version in a local folder, unless it is there, and puts it in use.

    A reader sees the version before until the last object is written. Raises StoreError.
    """
    target = bundle / VERSIONS / version
    if not (target / DESCRIPTION).is_file():
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DESCRIPTION):
            put(target / path.relative_to(folder).as_posix(), path)
        put(target / DESCRIPTION, folder / DESCRIPTION)
    use_in_store(bundle, version)


def use_in_store(bundle: StorePath, version: str) -> None:
    """Writes the pointer. Raises ContractError naming the versions that there are."""
    if not (bundle / VERSIONS / version / DESCRIPTION).is_file():
        complete = [name.split("/") for name, _ in listed(bundle / VERSIONS) if name.endswith(f"/{DESCRIPTION}")]
        known = ", ".join(sorted(parts[0] for parts in complete if len(parts) == 2))
        raise ContractError(f"{bundle}, version", f"one of {known or 'none'}", version)
    put(bundle / CURRENT, f"{VERSIONS}/{version}\n".encode())
