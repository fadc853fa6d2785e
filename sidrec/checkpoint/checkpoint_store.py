"""The checkpoints of a run: save them, list and check them, choose one to read, remove outdated ones.

Folder names: step-N is a complete checkpoint; step-N.partial is being written or removed, or was left by a killed
process; step-N.damaged failed its size or CRC-32 check. best.json names the best checkpoint.
"""

import contextlib
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

from torch import distributed as dist

from sidrec.checkpoint.dcp_storage import save_shards
from sidrec.checkpoint.tensor_shard import INDEX, StagingBuffers, StoredFile, TensorShard, read_index, write_index
from sidrec.checkpoint.train_state import POSITION, Position, best_text, position_text, read_best, read_position
from sidrec.config.recipe import CheckpointConfig
from sidrec.errors import CheckpointError, RankError, ReportedElsewhereError, SidrecError
from sidrec.io.files import replaced_file, to_disk
from sidrec.parallel.process_group import WRITES, Ranks, broadcast_object, gather_objects, run_on_all_ranks, total
from sidrec.schema import crc32_of

BEST = "best.json"
PARTIAL, DAMAGED = ".partial", ".damaged"
WRITTEN = re.compile(r"rank-\d+\.safetensors|(index|position|plan)\.json|index\.json\.partial|config\.yaml")
"""Names of a checkpoint's files; for checkpoints without an index."""
LOOK = 5.0  # seconds between two checks of the progress of a write


class Saver:
    """Saves a run's checkpoints in the background. Every rank has one and calls its methods together with the others.

    A thread writes from a copy of the shards and synchronizes with the other ranks' threads over a gloo group of its
    own. A failure on any rank is known to all ranks at the next `save`, or at `finish`.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        extra_files: Mapping[str, str],
        ranks: Ranks,
        write_shards: Callable[..., None] = save_shards,
    ) -> None:
        """folder: of the run's checkpoints; rank 0 removes partial checkpoints of killed processes.

        extra_files: name -> text of further files in each checkpoint. write_shards: called with the arguments of
        `save_shards`.
        """
        self._folder, self._config, self._copies = folder, config, StagingBuffers()
        self._heartbeat = ranks.heartbeat
        writers = replace(ranks, control=dist.new_group(backend="gloo"))
        self._writer = CheckpointWriter(folder, config.keep, extra_files, writers, write_shards)
        self._thread: Thread | None = None
        self._error: Exception | None = None
        self._failures: list[SidrecError] = []  # in a row
        if ranks.first:
            remove_leftovers(folder)

    def save(self, shards: Sequence[TensorShard], position: Position, *, wait: bool = False) -> None:
        """Saves step-N, N the position's step. Waits for the previous checkpoint, and with `wait` for this one.

        A failure is printed on stderr, and training goes on. Raises CheckpointError, on all ranks, after
        `checkpoint.failures` failures in a row, and with `wait` after any.
        """
        self._report_failure()
        owned = [shard for shard in shards if shard.owned]
        in_background = self._config.background and not wait
        if in_background:
            owned = self._copies.take(owned)
        self._thread = Thread(target=self._try, args=(owned, position), daemon=True, name="checkpoint")
        self._thread.start()
        if wait:
            self.finish()
        elif not in_background:
            self._report_failure()

    def finish(self) -> None:
        """Waits for the checkpoint being written. Raises CheckpointError, on all ranks, if it failed."""
        self._wait_and_note()
        if self._failures:
            self._stop("the last one failed")

    def leave(self, seconds: float) -> None:
        """Waits at most `seconds` for the checkpoint being written. For a rank that ends with an error."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _try(self, shards: Sequence[TensorShard], position: Position) -> None:
        try:
            self._writer.write(shards, position)
            self._failures.clear()
        except Exception as error:  # the training thread raises it in _wait_and_note
            self._error = error

    def _report_failure(self) -> None:
        """Waits for the checkpoint being written and prints its failure; raises after too many in a row."""
        before = len(self._failures)
        self._wait_and_note()
        count = len(self._failures)
        if count >= self._config.failures:
            self._stop(f"{count} in a row failed")
        if count > before and not isinstance(self._failures[-1], ReportedElsewhereError):
            message = f"sidrec: a checkpoint was not saved, {count} in a row: {self._failures[-1]}"
            print(message, file=sys.stderr, flush=True)

    def _wait_and_note(self) -> None:
        """Waits for the checkpoint being written and notes its failure."""
        if self._thread is not None:
            self._wait(self._thread)
            self._thread = None
        error, self._error = self._error, None
        if error is None:
            return
        if not isinstance(error, CheckpointError | RankError):  # not a failed write: another rank is gone
            raise error
        self._failures.append(error)

    def _wait(self, thread: Thread) -> None:
        """Waits without a limit. The heartbeat beats while bytes are being written: a slow write is not a hang."""
        before = -1
        while thread.is_alive():
            written = bytes_written(self._folder)
            if written != before:
                self._heartbeat.beat(WRITES)
            before = written
            thread.join(LOOK)

    def _stop(self, what: str) -> None:
        last = self._failures[-1]
        kind = RankError if isinstance(last, ReportedElsewhereError) else CheckpointError
        raise kind(f"{self._folder}: expected checkpoints to be saved, got: {what}: {last}") from None


class CheckpointWriter:
    """Writes checkpoints of all ranks, whole or not at all, and removes outdated ones. All ranks call it together.

    keep: how many of the newest checkpoints are kept, besides the best. extra_files: name -> text of further files.
    ranks: with a control group of their own, because a thread of its own calls it.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        extra_files: Mapping[str, str],
        ranks: Ranks,
        write_shards: Callable[..., None] = save_shards,
    ) -> None:
        self._folder, self._keep, self._extra_files, self._ranks = folder, keep, extra_files, ranks
        self._write_shards = write_shards

    def write(self, shards: Sequence[TensorShard], position: Position) -> None:
        """Writes step-N, N the position's step, unless it exists. Raises CheckpointError, on all ranks, if one of them
        cannot write; then nothing is left of it."""
        final = checkpoint_path(self._folder, position.step)
        if total(self._ranks, int(final.exists())):
            self._run(final, lambda: self._tidy(position))  # another checkpoint may be the best now
            return
        partial = final.with_name(final.name + PARTIAL)
        size = total(self._ranks, sum(shard.values.numel() * shard.values.element_size() for shard in shards))
        self._run(partial, lambda: self._prepare(partial, size))
        try:
            self._run(partial, lambda: self._write_shards(partial, shards, self._ranks.rank, self._ranks.control))
            self._run(partial, lambda: self._complete(partial, final, position))
        except BaseException:
            if self._ranks.first:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _run(self, path: Path, action: Callable[[], None]) -> None:
        def with_checkpoint_errors() -> None:
            try:
                action()
            except OSError as error:
                raise CheckpointError(f"{error.filename or path}: {error.strerror or error}") from None

        run_on_all_ranks(self._ranks, with_checkpoint_errors)

    def _prepare(self, partial: Path, size: int) -> None:
        if not self._ranks.first:
            return
        free = shutil.disk_usage(self._folder).free
        if free < size:
            raise CheckpointError(f"{self._folder}: expected room for a checkpoint of {size:,} bytes, got {free:,}")
        partial.mkdir()

    def _complete(self, partial: Path, final: Path, position: Position) -> None:
        if not self._ranks.first:
            return
        files = {name: text.encode() for name, text in self._extra_files.items()}
        files[POSITION] = position_text(position).encode()
        for name, content in files.items():
            (partial / name).write_bytes(content)
        index = read_index(partial)
        stored = {name: StoredFile(len(content), zlib.crc32(content)) for name, content in files.items()}
        write_index(partial, replace(index, files={**index.files, **stored}))
        for name in (*files, INDEX, "."):
            to_disk(partial / name)
        partial.replace(final)
        self._tidy(position)
        to_disk(self._folder)

    def _tidy(self, position: Position) -> None:
        if not self._ranks.first:
            return
        kept = {checkpoint_path(self._folder, position.best.step)} if position.best else set()
        best = self._folder / BEST
        if position.best:
            with replaced_file(best, one_writer=True) as partial:
                partial.write_text(best_text(position.best), encoding="utf-8")
        else:
            best.unlink(missing_ok=True)
        for outdated in checkpoints(self._folder)[self._keep :]:
            if outdated not in kept:
                remove_step(outdated)


# Listing, checking, choosing and removing checkpoints.


def checkpoint_path(folder: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return folder / f"step-{step}"


def checkpoints(folder: Path) -> list[Path]:
    """The folders step-N, newest first. Other names are left out, such as a user's copy."""
    named = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(named, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def remove_step(path: Path) -> None:
    """Removes a checkpoint, unless the folder holds foreign files, which is printed on stderr.

    Renames it first, so that a process killed meanwhile leaves a partial checkpoint, not a damaged one.
    """
    foreign = _foreign_file(path)
    if foreign:
        message = f"sidrec: {path}: this outdated checkpoint stays, as {foreign} is no part of it"
        print(message, file=sys.stderr, flush=True)
        return
    partial = path.with_name(path.name + PARTIAL)
    path.replace(partial)
    shutil.rmtree(partial)


def remove_leftovers(folder: Path) -> None:
    """Removes the partial checkpoints of killed processes, except those that hold foreign files."""
    for partial in folder.glob(f"step-*{PARTIAL}"):
        if partial.name.removeprefix("step-").removesuffix(PARTIAL).isdecimal() and not _foreign_file(partial):
            shutil.rmtree(partial)


def _foreign_file(path: Path) -> str | None:
    """The first file in a checkpoint's folder that training did not write; the folder's own name if it is a link."""
    if path.is_symlink():
        return path.name
    try:
        listed = set(read_index(path).files)
    except CheckpointError:
        listed = set()
    names = sorted(entry.name for entry in path.iterdir() if entry.name not in listed)
    return next((name for name in names if not WRITTEN.fullmatch(name)), None)


def bytes_written(folder: Path) -> int:
    """Bytes on disk of the checkpoint that is being written, by all ranks."""
    sizes = 0
    with contextlib.suppress(OSError):  # a folder or file can be renamed after it was listed
        for path in folder.glob(f"step-*{PARTIAL}/*"):
            sizes += path.stat().st_size
    return sizes


def newest_sound(folder: Path, ranks: Ranks, *, set_aside: bool) -> Path | None:
    """The newest checkpoint whose files pass their checks; None if there is no checkpoint.

    Every rank calls it and checks its share of the files. Damaged newer checkpoints are printed on stderr.
    set_aside: rename these to step-N.damaged, so that their steps can be saved again.
    Raises CheckpointError, and changes nothing, if there are checkpoints and all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for path in _on_first_rank(ranks, checkpoints(folder)):
        fault = fault_of(path, ranks)
        if fault is None:
            for damaged_path, found in damaged if ranks.first else ():
                _report_damage(damaged_path, found, path, set_aside)
            return path
        damaged.append((path, fault))
    again = "remove the folder to start from the beginning"
    if damaged:
        raise CheckpointError(f"{damaged[0][1]}; no checkpoint in {folder} is sound, {again}")
    aside = _on_first_rank(ranks, sorted(folder.glob(f"step-*{DAMAGED}*")))
    if aside:
        raise CheckpointError(f"{folder}: expected a sound checkpoint, got only {aside[-1].name}; {again}")
    return None


def _on_first_rank(ranks: Ranks, paths: list[Path]) -> list[Path]:
    """Rank 0's list on all ranks: the folder may change between the listings of two ranks."""
    return broadcast_object(ranks, paths)


def _report_damage(path: Path, fault: str, sound: Path, set_aside: bool) -> None:
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
    """The first fault found in a checkpoint, as a message; None if it is sound. All ranks call it and get the same."""
    return next((fault for fault in gather_objects(ranks, _own_fault(path, ranks)) if fault is not None), None)


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
    """Raises CheckpointError if a file has another size or checksum than its index says (`stored`)."""
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


def chosen_checkpoint(folder: Path, which: str | None, ranks: Ranks) -> Path:
    """The checkpoint to read.

    which: "newest", which passes over damaged ones as `newest_sound` does, "best" or "step-N"; None: the best if the
    run has one, else the newest. Raises CheckpointError if there is no such checkpoint, or it is damaged.
    """
    if which is None:
        which = "best" if run_on_all_ranks(ranks, (folder / BEST).is_file) else "newest"
    if which == "newest":
        newest = newest_sound(folder, ranks, set_aside=False)
        if newest is None:
            raise CheckpointError(f"{folder}: expected a checkpoint, got none")
        return newest
    path = folder / which
    if which == "best":
        path = checkpoint_path(folder, run_on_all_ranks(ranks, lambda: read_best(folder / BEST)).step)
    there = checkpoints(folder)
    if path not in there:
        raise CheckpointError(f"{folder}: expected one of its checkpoints, got {path.name}; it has {_names(there)}")
    fault = fault_of(path, ranks)
    if fault is not None:
        raise CheckpointError(fault)
    return path


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths) or "none"
