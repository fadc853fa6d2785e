"""State of tables' rows besides weights and optimizer: how often each was updated, and who holds a managed row.

Shapes: N ids met in an interval.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sidrec.checkpoint.tensor_shard import (
    RANKS,
    UPDATES,
    CheckpointIndex,
    TensorShard,
    Weight,
    is_table,
    table_of,
    whole_tensor,
)
from sidrec.data.item_tables import HID
from sidrec.errors import CheckpointError, print_warning
from sidrec.model.tables import ManagedCollisionRows
from sidrec.parallel.process_group import Ranks
from sidrec.parallel.sharding import row_updates

# Updates received by each row of the HID table (`sidrec.parallel.update_counts`).


def update_shards(model: nn.Module, weights: Mapping[str, Weight], owned: bool) -> list[TensorShard]:
    """The counts of this rank's rows: shards updates/NAME, int32 [rows, 1]; views.

    weights: as in the model's state_dict. owned: whether this rank saves the counts of a replicated table.
    """
    names = {table_of(name): name for name in weights if is_table(name)}
    return [
        TensorShard(
            f"{UPDATES}/{names[updates.table]}",
            (updates.rows, 1),
            (updates.first_row, 0),
            updates.counts_N1,
            owned or not updates.replicated,
        )
        for updates in row_updates(model)
    ]


def stored_counts(
    path: Path, index: CheckpointIndex, shards: Sequence[TensorShard], weights: Mapping[str, Weight], ranks: Ranks
) -> list[TensorShard]:
    """The `update_shards` that a checkpoint has. One of before 0.2.0 has none; then counts stay, after a warning.

    weights: those that are loaded from it.
    """
    known = {key for key in index.tensors if key.startswith(f"{UPDATES}/")}
    has_hids = any(is_table(name) and table_of(name) == HID for name in weights)
    if ranks.first and has_hids and not known:
        print_warning(f"{path}: this older checkpoint does not say how often HID rows were updated; counts begin at 0")
    return [shard for shard in shards if shard.key in known]


# Managed-collision tables: besides their tensors, each rank saves the ids that it met in the current interval.


INTERVAL = "slots"  # part of a key


def managed_collision_shards(model: nn.Module, ranks: Ranks) -> list[TensorShard]:
    """This rank's interval: shards ranks/RANK/slots/TABLE/NAME, int64 [N]."""
    return [
        whole_tensor(f"{RANKS}/{ranks.rank}/{INTERVAL}/{table}/{name}", values_N)
        for table, rows in _managed(model).items()
        for name, values_N in rows.interval().items()
    ]


def managed_collision_shards_to_fill(
    path: Path, index: CheckpointIndex, model: nn.Module, training: bool, ranks: Ranks
) -> list[TensorShard]:
    """Empty shards to load a checkpoint's `managed_collision_shards` into; none if not `training`.

    Raises CheckpointError if another number of ranks wrote the checkpoint; one rank alone can evaluate it.
    """
    if not _managed(model):
        return []
    owners = len({key.split("/")[1] for key in index.tensors if f"/{INTERVAL}/" in key})
    if owners != ranks.world and (training or ranks.world > 1):
        raise CheckpointError(
            f"{path}: expected the {owners} rank(s) that own the slots of its managed tables, got {ranks.world}; "
            "one rank can evaluate it too"
        )
    shards = managed_collision_shards(model, ranks) if training else []
    missing = [shard.key for shard in shards if shard.key not in index.tensors]
    if missing:
        raise CheckpointError(f"{path}: expected a tensor {missing[0]}, got none of that name")
    return [whole_tensor(shard.key, torch.empty(index.tensors[shard.key].shape, dtype=torch.int64)) for shard in shards]


def restore_managed_collision(model: nn.Module, shards: Sequence[TensorShard]) -> None:
    """Makes loaded managed-collision tables usable and restores their intervals.

    shards: as `managed_collision_shards_to_fill` returned them, loaded.
    """
    intervals: dict[str, dict[str, Tensor]] = {}
    for shard in shards:
        table, name = shard.key.split("/")[-2:]
        intervals.setdefault(table, {})[name] = shard.values
    for table, rows in _managed(model).items():
        rows.validate_state()  # sorts by id: loaded rows are in rank order
        if table in intervals:
            rows.resume(intervals[table])


def _managed(model: nn.Module) -> dict[str, ManagedCollisionRows]:
    return {str(module._name): module for module in model.modules() if isinstance(module, ManagedCollisionRows)}
