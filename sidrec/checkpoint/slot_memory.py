"""What a checkpoint holds of managed tables beside their tensors: each rank's memory of the interval it is in."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sidrec.checkpoint.index import CheckpointIndex
from sidrec.checkpoint.piece import CheckpointError, Piece, whole
from sidrec.checkpoint.piece_names import RANKS
from sidrec.model.managed_table import Slots
from sidrec.parallel.process_group import Ranks

SLOTS = "slots"


def slot_pieces(model: nn.Module, ranks: Ranks) -> list[Piece]:
    """This rank's memory, as it is now: ranks/RANK/slots/TABLE/NAME, int64 [N] for N ids met in the interval."""
    return [
        whole(f"{RANKS}/{ranks.rank}/{SLOTS}/{table}/{name}", values_N)
        for table, slots in _managed(model).items()
        for name, values_N in slots.interval().items()
    ]


def room_for_slot_memory(
    path: Path, index: CheckpointIndex, model: nn.Module, training: bool, ranks: Ranks
) -> list[Piece]:
    """Pieces for a checkpoint's `slot_pieces` to be read into; none where none are wanted.

    Raises CheckpointError when other ranks wrote it: their slots are theirs, but one rank can evaluate with all.
    """
    if not _managed(model):
        return []
    owners = len({key.split("/")[1] for key in index.tensors if f"/{SLOTS}/" in key})
    if owners != ranks.world and (training or ranks.world > 1):
        raise CheckpointError(
            f"{path}: expected the {owners} rank(s) that own the slots of its managed tables, got {ranks.world}; "
            "one rank can evaluate it too"
        )
    memory = slot_pieces(model, ranks) if training else []
    missing = [piece.key for piece in memory if piece.key not in index.tensors]
    if missing:
        raise CheckpointError(f"{path}: expected a tensor {missing[0]}, got none of that name")
    return [whole(piece.key, torch.empty(index.tensors[piece.key].shape, dtype=torch.int64)) for piece in memory]


def resume_slots(model: nn.Module, memory: Sequence[Piece]) -> None:
    """Makes loaded slots usable, and puts them where they were in their interval.

    memory: what `room_for_slot_memory` made, filled.
    """
    intervals: dict[str, dict[str, Tensor]] = {}
    for piece in memory:
        table, name = piece.key.split("/")[-2:]
        intervals.setdefault(table, {})[name] = piece.values
    for table, slots in _managed(model).items():
        slots.validate_state()  # sorts them by id: those of several ranks lie one rank after the other
        if table in intervals:
            slots.resume(intervals[table])


def _managed(model: nn.Module) -> dict[str, Slots]:
    return {str(module._name): module for module in model.modules() if isinstance(module, Slots)}
