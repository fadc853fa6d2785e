"""The checkpoints of a run: checkpoints/step-N, the newest sound one of them, and what is no longer wanted.

step-N.partial is being written, or removed, or was when its process ended; step-N.damaged was found not to be what was
written. best.json tells the best one.
"""

import contextlib
import re
import shutil
import sys
from pathlib import Path

from torch import distributed as dist

from sidrec.checkpoint.index import StoredFile, read_index
from sidrec.checkpoint.piece import CheckpointError
from sidrec.checkpoint.position import POSITION, read_best, read_position
from sidrec.parallel.process_group import Ranks, together
from sidrec.schema import crc32_of

BEST = "best.json"
PARTIAL, DAMAGED = ".partial", ".damaged"
WRITTEN = re.compile(r"rank-\d+\.safetensors|(index|position|plan)\.json|config\.yaml")
"""Names of a checkpoint's files, for one without index."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step}"


def checkpoints(folder: Path) -> list[Path]:
    """What carries a checkpoint's name, newest first; a copy that somebody made beside them does not."""
    named = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(named, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def remove(path: Path) -> None:
    """Removes a checkpoint. A process that is killed meanwhile leaves a partial one, not a damaged one.

    One that holds other files too stays as it is, which is said on stderr.
    """
    foreign = _foreign_file(path)
    if foreign:
        said = f"sidrec: {path}: this outdated checkpoint stays, as {foreign} is no part of it"
        print(said, file=sys.stderr, flush=True)
        return
    partial = path.with_name(path.name + PARTIAL)
    path.replace(partial)
    shutil.rmtree(partial)


def remove_left_over(folder: Path) -> None:
    """Removes what killed processes were writing or removing, except where it holds other files too."""
    for partial in folder.glob(f"step-*{PARTIAL}"):
        if partial.name.removeprefix("step-").removesuffix(PARTIAL).isdecimal() and not _foreign_file(partial):
            shutil.rmtree(partial)


def _foreign_file(path: Path) -> str | None:
    """The first name in a checkpoint's folder of what no process of a training wrote; the folder itself if a link."""
    if path.is_symlink():
        return path.name
    try:
        listed = set(read_index(path).files)
    except CheckpointError:
        listed = set()
    names = sorted(entry.name for entry in path.iterdir() if entry.name not in listed)
    return next((name for name in names if not WRITTEN.fullmatch(name)), None)


def bytes_written(folder: Path) -> int:
    """Size of what is being written, so far, by all ranks."""
    sizes = 0
    with contextlib.suppress(OSError):  # finished meanwhile: a folder or a file can be gone once it is listed
        for path in folder.glob(f"step-*{PARTIAL}/*"):
            sizes += path.stat().st_size
    return sizes


def newest_sound(folder: Path, ranks: Ranks, *, set_aside: bool) -> Path | None:
    """The newest checkpoint whose files all are what was written; None where there is none at all. A damaged newer one
    is said on stderr. Every rank calls it and checks its share of the files.

    set_aside: give damaged ones newer than the result the name step-N.damaged, so that their steps can be saved again.
    Raises CheckpointError, and changes nothing, where there are checkpoints and none of them is sound.
    """
    damaged: list[tuple[Path, str]] = []
    for path in _of_first(ranks, checkpoints(folder)):
        fault = fault_of(path, ranks)
        if fault is None:
            for unsound, words in damaged if ranks.first else ():
                _pass_over(unsound, words, path, set_aside)
            return path
        damaged.append((path, fault))
    again = "remove the folder to start from the beginning"
    if damaged:
        raise CheckpointError(f"{damaged[0][1]}; no checkpoint in {folder} is sound, {again}")
    aside = _of_first(ranks, sorted(folder.glob(f"step-*{DAMAGED}*")))
    if aside:
        raise CheckpointError(f"{folder}: expected a sound checkpoint, got only {aside[-1].name}; {again}")
    return None


def _of_first(ranks: Ranks, paths: list[Path]) -> list[Path]:
    """The paths that rank 0 found: another one could meet the folder in another state."""
    found = [paths]
    dist.broadcast_object_list(found, src=0, group=ranks.control)
    return found[0]


def _pass_over(path: Path, fault: str, sound: Path, set_aside: bool) -> None:
    what = "passed over"
    if set_aside:
        aside = _free_name(path)
        path.replace(aside)
        what = f"set aside as {aside.name}"
    print(f"sidrec: {fault}; this checkpoint is {what}, {sound.name} taken", file=sys.stderr, flush=True)


def _free_name(path: Path) -> Path:
    aside, number = path.with_name(path.name + DAMAGED), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{DAMAGED}-{number}")
    return aside


def fault_of(path: Path, ranks: Ranks) -> str | None:
    """What is wrong with a checkpoint, in one sentence; None if nothing is. Every rank calls it and gets the same."""
    faults: list[str | None] = [None] * ranks.world
    dist.all_gather_object(faults, _own_fault(path, ranks), group=ranks.control)
    return next((fault for fault in faults if fault is not None), None)


def _own_fault(path: Path, ranks: Ranks) -> str | None:
    try:
        files = read_index(path).files
        read_position(path)
        if POSITION not in files:
            raise CheckpointError(f"{path}: expected {POSITION} among the files of its index, got {sorted(files)}")
        for name in sorted(files, key=lambda name: files[name].size, reverse=True)[ranks.rank :: ranks.world]:
            check_file(path / name, files[name])
    except CheckpointError as error:
        return f"{error}"
    return None


def check_file(path: Path, stored: StoredFile) -> None:
    """Raises CheckpointError where a file of a checkpoint is not what was written; stored: what its index says."""
    found = path.stat().st_size if path.is_file() else None
    if found != stored.size:
        raise CheckpointError(
            f"{path}: expected a file of {stored.size} bytes, got {'none' if found is None else found}"
        )
    try:
        checksum = crc32_of(path)
    except OSError as error:
        raise CheckpointError(f"{path}: expected a file of {stored.size} bytes, got {error.strerror}") from None
    if checksum != stored.crc32:
        raise CheckpointError(f"{path}: expected the CRC-32 {stored.crc32:08x} of its index, got {checksum:08x}")


def chosen(folder: Path, which: str | None, ranks: Ranks) -> Path:
    """A checkpoint to read: "newest" (as `newest_sound` passes over damaged ones), "best" or "step-N"; None means the
    best where the run keeps one, else the newest. Raises CheckpointError where there is no such one, or it is damaged.
    """
    if which is None:
        which = "best" if together(ranks, (folder / BEST).is_file) else "newest"
    if which == "newest":
        newest = newest_sound(folder, ranks, set_aside=False)
        if newest is None:
            raise CheckpointError(f"{folder}: expected a checkpoint, got none")
        return newest
    path = folder / which
    if which == "best":
        path = checkpoint_path(folder, together(ranks, lambda: read_best(folder / BEST)).step)
    there = checkpoints(folder)
    if path not in there:
        raise CheckpointError(f"{folder}: expected one of its checkpoints, got {path.name}; it has {_names(there)}")
    fault = fault_of(path, ranks)
    if fault is not None:
        raise CheckpointError(fault)
    return path


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths) or "none"
