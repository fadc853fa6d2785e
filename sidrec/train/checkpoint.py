"""Checkpoints through torch.distributed.checkpoint: there whole or not at all.

A checkpoint is a folder checkpoints/step-N with DCP's files and position.json; it is written as step-N.partial and
renamed when every rank is done.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from sidrec.config import ConfigError
from sidrec.parallel.process_group import Ranks
from sidrec.train.run_directory import write_json

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


def newest(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, if any."""
    complete = [path for path in folder.glob("step-*") if path.suffix != ".partial" and (path / POSITION).is_file()]
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


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
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier(group=ranks.control)
    state = {"model": model.state_dict(), "optimizer": _optimizer_state(optimizer)}
    dcp.save(state, checkpoint_id=partial, process_group=ranks.control)
    if ranks.first:
        write_json(partial / POSITION, asdict(position))
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        steps = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if path.suffix == "")
        for step in steps[:-keep]:
            shutil.rmtree(folder / f"step-{step}")
    dist.barrier(group=ranks.control)


def read_position(path: Path, catalog: str | None) -> Position:
    """Where a checkpoint stands. Raises CheckpointError when it was trained with another catalog."""
    position = Position(**json.loads((path / POSITION).read_text()))
    if position.catalog != catalog:
        raise CheckpointError(f"{path}: expected the catalog {position.catalog} it was trained with, got {catalog}")
    return position


def load(path: Path, model: DistributedModelParallel, optimizer: KeyedOptimizer | None, ranks: Ranks) -> None:
    """Reads a checkpoint into model and, if given, optimizer; the plan may differ from the one that wrote it."""
    state: dict[str, Any] = {"model": model.state_dict()}
    if optimizer is not None:
        optimizer.init_state()
        state["optimizer"] = _optimizer_state(optimizer)
    dcp.load(state, checkpoint_id=path, process_group=ranks.control)
    model.load_state_dict(state["model"])
    if optimizer is not None:
        whole = optimizer.state_dict()
        whole["state"].update(state["optimizer"]["state"])
        optimizer.load_state_dict(whole)


def _optimizer_state(optimizer: KeyedOptimizer) -> dict[str, Any]:
    """The optimizer's state without parameters that have none (SGD): DCP cannot find an empty entry again."""
    return {"state": {name: state for name, state in optimizer.state_dict()["state"].items() if state}}
