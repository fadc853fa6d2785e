"""Checkpoints through torch.distributed.checkpoint: there whole or not at all.

A checkpoint is a folder checkpoints/step-N with DCP's files and position.json; it is written as step-N.partial and
renamed when every rank is done.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from sidrec.config import ConfigError
from sidrec.parallel.process_group import Ranks, agree, together
from sidrec.train.run_directory import write_json
from sidrec.train.slot_memory import resume_slots, room_for_slot_memory, slot_memory

POSITION = "position.json"


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used here; the message says why."""


@dataclass(frozen=True)
class Position:
    """Where training stands: `step` steps done, `epoch_step` of them in epoch `epoch`; and with which catalog."""

    step: int
    epoch: int
    epoch_step: int
    catalog: str | None


_POSITION: TypeAdapter[Position] = TypeAdapter(Position)


def newest(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, if any."""
    complete = [path for path in _checkpoints(folder) if (path / POSITION).is_file()]
    return max(complete, key=_step, default=None)


def _checkpoints(folder: Path) -> list[Path]:
    """What carries a checkpoint's name; a partial one does not, nor does a copy that somebody made beside them."""
    return [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def save(
    folder: Path,
    model: DistributedModelParallel,
    optimizer: KeyedOptimizer,
    position: Position,
    keep: int,
    ranks: Ranks,
) -> None:
    """Writes checkpoints/step-N and removes all but the newest `keep`."""
    final = folder / f"step-{position.step}"
    partial = final.with_suffix(".partial")
    if ranks.first:
        for left_over in folder.glob("step-*.partial"):  # by a process that was killed while it wrote
            shutil.rmtree(left_over)
        partial.mkdir(parents=True)
    dist.barrier(group=ranks.control)
    state = {"model": model.state_dict(), "optimizer": _optimizer_state(optimizer), **slot_memory(model, ranks)}
    dcp.save(state, checkpoint_id=partial, process_group=ranks.control)
    if ranks.first:
        write_json(partial / POSITION, asdict(position))
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        for outdated in sorted(_checkpoints(folder), key=_step)[:-keep]:
            shutil.rmtree(outdated)
    dist.barrier(group=ranks.control)


def read_position(path: Path, catalog: str | None) -> Position:
    """Where a checkpoint stands. Raises CheckpointError when it is damaged or was trained with another catalog."""
    try:
        position = _POSITION.validate_json((path / POSITION).read_bytes())
    except ValidationError as error:
        mistakes = ", ".join(".".join(map(str, (*found["loc"], found["msg"]))) for found in error.errors())
        keys = ", ".join(Position.__dataclass_fields__)
        raise CheckpointError(f"{path / POSITION}: expected JSON with {keys}, got {mistakes}") from None
    if position.catalog != catalog:
        raise CheckpointError(f"{path}: expected the catalog {position.catalog} it was trained with, got {catalog}")
    _check_files(path)
    return position


def _check_files(path: Path) -> None:
    """Refuses a checkpoint that lacks a file, or the end of one, that its index names."""
    index = FileSystemReader(path)
    try:
        places = index.read_metadata().storage_data.values()
    except (OSError, ValueError, AttributeError, EOFError, UnpicklingError) as error:
        raise CheckpointError(f"{path / '.metadata'}: expected the checkpoint's index, got {_words(error)}") from None
    wanted: dict[str, int] = {}
    for place in places:
        wanted[place.relative_path] = max(wanted.get(place.relative_path, 0), place.offset + place.length)
    for name, size in wanted.items():
        found = (path / name).stat().st_size if (path / name).is_file() else 0
        if found < size:
            raise CheckpointError(f"{path / name}: expected a file of {size} bytes, got {found or 'none'}")


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def load(path: Path, model: DistributedModelParallel, optimizer: KeyedOptimizer | None, ranks: Ranks) -> None:
    """Reads a checkpoint into model and, if given, optimizer; the plan may differ from the one that wrote it.

    Raises CheckpointError, on all ranks, when it cannot be read or holds other tables or layers than the model, and
    ConfigError when its managed tables are of other ranks.
    """
    state: dict[str, Any] = {"model": model.state_dict()}
    state |= together(ranks, lambda: room_for_slot_memory(path, model, optimizer is not None, ranks))
    if optimizer is not None:
        optimizer.init_state()
        state["optimizer"] = _optimizer_state(optimizer)
    try:
        dcp.load(state, checkpoint_id=path, process_group=ranks.control)
    except CheckpointException as failed:  # gathered from all ranks, and no Exception
        rank, (error, _) = min(failed.failures.items())
        complaint = CheckpointError(f"{path}: expected what this model holds, got: {_words(error)}")
        agree(ranks, complaint if rank == ranks.rank else None)
    model.load_state_dict(state["model"])
    resume_slots(model, state, ranks)
    if optimizer is not None:
        whole = optimizer.state_dict()
        whole["state"].update(state["optimizer"]["state"])
        optimizer.load_state_dict(whole)


def _optimizer_state(optimizer: KeyedOptimizer) -> dict[str, Any]:
    """The optimizer's state without parameters that have none (SGD): DCP cannot find an empty entry again."""
    return {"state": {name: state for name, state in optimizer.state_dict()["state"].items() if state}}
