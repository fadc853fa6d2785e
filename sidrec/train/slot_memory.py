"""What a checkpoint holds of managed tables beside their tensors: each rank's memory of the interval it is in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sidrec.config import ConfigError
from sidrec.model.managed_table import Slots
from sidrec.parallel.process_group import Ranks

SLOTS = "slots"


def slot_memory(model: nn.Module, ranks: Ranks) -> dict[str, Any]:
    """This rank's part of a checkpoint, under a name of its own; nothing where no table is managed."""
    memory = {name: slots.interval() for name, slots in _managed(model).items()}
    return {SLOTS: {_part(ranks.rank): memory}} if memory else {}


def room_for_slot_memory(path: Path, model: nn.Module, training: bool, ranks: Ranks) -> dict[str, Any]:
    """Tensors for a checkpoint's `slot_memory` to be read into; nothing where none is wanted.

    Raises ConfigError when other ranks wrote it: their slots are theirs, except that one rank can evaluate with all.
    """
    tables = _managed(model)
    if not tables:
        return {}
    saved = FileSystemReader(path).read_metadata().state_dict_metadata
    owners = len({key.split(".")[1] for key in saved if key.startswith(f"{SLOTS}.")})
    if owners != ranks.world and (training or ranks.world > 1):
        raise ConfigError(
            f"{path}: expected the {owners} rank(s) that own the slots of its managed tables, got {ranks.world}; "
            "one rank can evaluate it too"
        )
    prefix = f"{SLOTS}.{_part(ranks.rank)}."
    memory: dict[str, dict[str, torch.Tensor]] = {name: {} for name in tables}
    for key, found in saved.items():
        if key.startswith(prefix) and isinstance(found, TensorStorageMetadata):
            table, name = key.removeprefix(prefix).split(".")
            memory[table][name] = torch.empty(found.size, dtype=torch.int64)
    return {SLOTS: {_part(ranks.rank): memory}} if training else {}


def resume_slots(model: nn.Module, state: Mapping[str, Any], ranks: Ranks) -> None:
    """Puts managed tables where they were in their interval; state: with what `slot_memory` made, or without."""
    for name, slots in _managed(model).items():
        if SLOTS in state:
            slots.resume(state[SLOTS][_part(ranks.rank)][name])


def _managed(model: nn.Module) -> dict[str, Slots]:
    return {str(module._name): module for module in model.modules() if isinstance(module, Slots)}


def _part(rank: int) -> str:
    return f"rank{rank}"
