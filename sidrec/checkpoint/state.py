"""The state of a model and its optimizer as tensor shards, saved and loaded under any plan and any number of ranks."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.fused import FusedOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from sidrec.checkpoint.dcp_storage import load_shards
from sidrec.checkpoint.rowwise_adagrad_reshard import RowwiseAdagradReshard
from sidrec.checkpoint.tensor_shard import (
    MODEL,
    OPTIMIZER,
    RANKS,
    ROW_SUM,
    SUM,
    CheckpointIndex,
    TensorShard,
    Weight,
    dtype_of,
    has_local_rows,
    is_table,
    parameter_of,
    read_index,
    shape_of,
    table_of,
    whole_tensor,
)
from sidrec.errors import CheckpointError
from sidrec.io.safetensors_files import DTYPE_NAMES
from sidrec.model.tables import Slots
from sidrec.parallel.initial_values import lookups_of
from sidrec.parallel.process_group import Ranks, run_on_all_ranks


def state_shards(model: DistributedModelParallel, optimizer: KeyedOptimizer | None, ranks: Ranks) -> list[TensorShard]:
    """What this rank holds of a checkpoint: views into model and optimizer, as they are now.

    optimizer: None to leave out optimizer states and managed tables' intervals. States not created yet are left out.
    """
    weights = model.state_dict()
    shards = _of_weights(weights, ranks)
    if optimizer is not None:
        shards += [*optimizer_shards(optimizer, weights, ranks.first), *slot_shards(model, ranks)]
    return shards


def _of_weights(weights: Mapping[str, Weight], ranks: Ranks) -> list[TensorShard]:
    return [shard for name, value in weights.items() for shard in _of_weight(f"{MODEL}/{name}", value, ranks.first)]


def _of_weight(key: str, value: Weight, owned: bool) -> Iterable[TensorShard]:
    if not isinstance(value, ShardedTensor):
        return [whole_tensor(key, value, owned)]
    return [
        TensorShard(key, shape_of(value), tuple(shard.metadata.shard_offsets), shard.tensor)
        for shard in value.local_shards()
        if shard.tensor.numel()
    ]


def load_model(path: Path, model: DistributedModelParallel, optimizer: KeyedOptimizer | None, ranks: Ranks) -> None:
    """Reads a checkpoint into the model and, if given, its optimizer, whatever plan and ranks wrote it.

    Row-wise Adagrad's state of columns that are cut differently is converted as `reshard` says, and the log says so.

    Raises CheckpointError, on all ranks: before anything is loaded, when the checkpoint has other tables, layers or
    optimizers than the model, and where other ranks wrote managed tables (their slots are theirs, but one rank can
    evaluate with all); and when it cannot be read.
    """
    index = run_on_all_ranks(ranks, lambda: read_index(path))
    weights = model.state_dict()
    run_on_all_ranks(ranks, lambda: check_model(path, index, weights))
    memory = run_on_all_ranks(ranks, lambda: slot_shards_to_fill(path, index, model, optimizer is not None, ranks))
    shards = _of_weights(weights, ranks)
    reshard = None
    if optimizer is not None:
        init_optimizer_states(optimizer, index.tensors)
        states = optimizer_shards(optimizer, weights, ranks.first)
        trained = [name for name in optimizer.params if has_local_rows(weights[name])]
        run_on_all_ranks(ranks, lambda: check_optimizer(path, index, trained, states))
        reshard = run_on_all_ranks(ranks, lambda: RowwiseAdagradReshard(path, index, weights, states))
        shards += reshard.shards
        if ranks.first:
            reshard.say()
    load_shards(path, index, [*shards, *memory], ranks.control)
    if reshard is not None:
        reshard.convert()
    restore_slots(model, memory)
    invalidate_caches(model)


def invalidate_caches(model: nn.Module) -> None:
    """Invalidates FBGEMM's row cache after loading."""
    for lookup in lookups_of(model):
        lookup.purge()


# Optimizer states as shards: FBGEMM's fused states and torch's have the same names.


MOMENTUM = "momentum1"  # what FBGEMM calls the sum of squared gradients, of elements or of rows


def optimizer_shards(optimizer: KeyedOptimizer, weights: Mapping[str, Weight], owned: bool) -> list[TensorShard]:
    """The shards of the states that an optimizer has on this rank; views.

    weights: the parameters, as the model's state_dict has them. owned: whether this rank writes what all ranks have.
    """
    return [
        shard
        for name, states in optimizer.state_dict()["state"].items()
        for shard in _of_parameter(name, weights[name], states, owned)
    ]


def init_optimizer_states(optimizer: KeyedOptimizer, keys: Collection[str]) -> None:
    """Has torch's optimizers make the states of their first step, to be loaded into; changes no weight.

    Parameters saved without optimizer state get none. keys: of the checkpoint's tensors.
    """
    saved = {parameter_of(key) for key in keys if key.startswith(f"{OPTIMIZER}/")}
    layers = {name for name in saved if not is_table(name)}
    for part in _of_torch(optimizer):
        rates = [group["lr"] for group in part.param_groups]
        for group in part.param_groups:
            group["lr"] = 0.0  # a gradient of zero still decays weights
        part.init_state()
        part.zero_grad()
        for group, rate in zip(part.param_groups, rates, strict=True):
            group["lr"] = rate
        for name, parameter in part.params.items():
            if layers and not is_table(name) and name not in layers and parameter in part.state:
                del part.state[parameter]


def _of_torch(optimizer: KeyedOptimizer) -> Iterator[KeyedOptimizer]:
    """The parts of an optimizer that FBGEMM does not do: its states are there from the start."""
    if isinstance(optimizer, CombinedOptimizer):
        for _, part in optimizer.optimizers:
            yield from _of_torch(part)
    elif not isinstance(optimizer, FusedOptimizer):
        yield optimizer


def _of_parameter(name: str, weight: Weight, states: Mapping[str, Any], owned: bool) -> Iterator[TensorShard]:
    key = f"{OPTIMIZER}/{name}"
    if isinstance(weight, ShardedTensor):
        for state_name, state in states.items():
            assert state_name.endswith(f".{MOMENTUM}"), f"Adagrad keeps one state, got {state_name}"
            yield from _fused(key, weight, state)
    elif is_table(name):
        if SUM in states:  # the step that torch's Adagrad counts beside it matters only to a decay that nobody sets
            yield _replicated(key, weight, states[SUM], owned)
    else:
        for state_name, state in states.items():
            yield whole_tensor(f"{key}/{state_name}", state, owned)


def _replicated(key: str, weight: Tensor, state: Tensor, owned: bool) -> TensorShard:
    """torch's state of a replicated table, which may be flat: as large as the table, or one value per row."""
    if state.numel() == weight.numel():
        return whole_tensor(f"{key}/{SUM}", state.view_as(weight), owned)
    return whole_tensor(f"{key}/{ROW_SUM}", state.view(len(weight), 1), owned)


def _fused(key: str, weight: ShardedTensor, state: ShardedTensor) -> Iterator[TensorShard]:
    """FBGEMM's state of a sharded table: cut as the table is, or one value per row for each shard of the columns.

    TorchRec lays the values of rows end to end, column shard after column shard, whatever the table's own layout.
    """
    size = shape_of(weight)
    held = [shard for shard in state.local_shards() if shard.tensor.numel()]
    if len(shape_of(state)) == len(size):
        for shard in held:
            yield TensorShard(f"{key}/{SUM}", size, tuple(shard.metadata.shard_offsets), shard.tensor)
        return
    shards = sorted(weight.metadata().shards_metadata, key=lambda shard: shard.shard_offsets[1])
    laid_out = [(tuple(found.shard_offsets), tuple(found.shard_sizes)) for found in state.metadata().shards_metadata]
    columns = sorted({shard.shard_offsets[1] for shard in shards})
    for local in held:
        where = (tuple(local.metadata.shard_offsets), tuple(local.metadata.shard_sizes))
        row, column = shards[laid_out.index(where)].shard_offsets
        offset = (row, columns.index(column))
        yield TensorShard(f"{key}/{ROW_SUM}", (size[0], len(columns)), offset, local.tensor.view(-1, 1))


# Managed collision tables: besides its tensors, each rank saves the ids that it met in the current interval.


SLOTS = "slots"


def slot_shards(model: nn.Module, ranks: Ranks) -> list[TensorShard]:
    """This rank's memory, as it is now: ranks/RANK/slots/TABLE/NAME, int64 [N] for N ids met in the interval."""
    return [
        whole_tensor(f"{RANKS}/{ranks.rank}/{SLOTS}/{table}/{name}", values_N)
        for table, slots in _managed(model).items()
        for name, values_N in slots.interval().items()
    ]


def slot_shards_to_fill(
    path: Path, index: CheckpointIndex, model: nn.Module, training: bool, ranks: Ranks
) -> list[TensorShard]:
    """Shards for a checkpoint's `slot_shards` to be read into; none where none are wanted.

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
    memory = slot_shards(model, ranks) if training else []
    missing = [shard.key for shard in memory if shard.key not in index.tensors]
    if missing:
        raise CheckpointError(f"{path}: expected a tensor {missing[0]}, got none of that name")
    return [whole_tensor(shard.key, torch.empty(index.tensors[shard.key].shape, dtype=torch.int64)) for shard in memory]


def restore_slots(model: nn.Module, memory: Sequence[TensorShard]) -> None:
    """Makes loaded slots usable, and puts them where they were in their interval.

    memory: what `room_for_slot_memory` made, filled.
    """
    intervals: dict[str, dict[str, Tensor]] = {}
    for shard in memory:
        table, name = shard.key.split("/")[-2:]
        intervals.setdefault(table, {})[name] = shard.values
    for table, slots in _managed(model).items():
        slots.validate_state()  # sorts them by id: those of several ranks lie one rank after the other
        if table in intervals:
            slots.resume(intervals[table])


def _managed(model: nn.Module) -> dict[str, Slots]:
    return {str(module._name): module for module in model.modules() if isinstance(module, Slots)}


# Compatibility: compare a checkpoint with this model and optimizer before anything is loaded.


TABLE_OPTIMIZERS = {frozenset({SUM}): "adagrad", frozenset({ROW_SUM}): "rowwise_adagrad", frozenset[str](): "sgd"}


LAYER_OPTIMIZERS = {
    frozenset({"step", "exp_avg", "exp_avg_sq"}): "adam or adamw",
    frozenset({"step", "sum"}): "adagrad",
    frozenset[str](): "none",
}
"""The optimizers of a recipe by the states that they keep of a table, and of a layer."""


def check_model(path: Path, index: CheckpointIndex, state: Mapping[str, Weight]) -> None:
    """Raises CheckpointError unless the checkpoint `path` has the tables and layers of a state_dict, and no others."""
    names = {key.removeprefix(f"{MODEL}/") for key in index.tensors if key.startswith(f"{MODEL}/")}
    for name, value in state.items():
        if name not in names:
            raise CheckpointError(f"{path}: expected the {_named(name)} of this recipe, got a checkpoint without it")
        stored = index.tensors[f"{MODEL}/{name}"]
        expected, dtype = shape_of(value), DTYPE_NAMES[dtype_of(value)]
        if len(expected) != len(stored.shape) or dtype != stored.dtype:
            raise CheckpointError(
                f"{path}: {_named(name)}: expected {dtype} {list(expected)} as this recipe has, "
                f"the checkpoint's is {stored.dtype} {list(stored.shape)}"
            )
        if expected != stored.shape:
            raise CheckpointError(f"{path}: {_named(name)}: {_other_shape(name, expected, stored.shape)}")
    others = sorted(names - state.keys())
    if others:
        raise CheckpointError(
            f"{path}: expected the tables and layers of this recipe alone, got the {_named(others[0])} beside them"
        )


def _other_shape(name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    if not is_table(name):
        return f"expected shape {list(expected)} as this recipe has, the checkpoint's has {list(found)}"
    if expected[1] != found[1]:
        return f"expected width {expected[1]} as this recipe has, the checkpoint's has {found[1]}"
    return f"expected {expected[0]} rows as this recipe's data have, the checkpoint's has {found[0]}"


def check_optimizer(
    path: Path, index: CheckpointIndex, parameters: Iterable[str], shards: Iterable[TensorShard]
) -> None:
    """Raises CheckpointError unless the checkpoint `path` keeps of each parameter what this rank's optimizer keeps.

    parameters: names of what the optimizer updates on this rank. shards: of its states.
    """
    stored = _states(index.tensors)
    kept = _states(shard.key for shard in shards)
    for name in parameters:
        expected, found = kept.get(name, frozenset()), stored.get(name, frozenset())
        if expected != found:
            kinds = TABLE_OPTIMIZERS if is_table(name) else LAYER_OPTIMIZERS
            raise CheckpointError(
                f"{path}: {_named(name)}: expected the optimizer {_kind(kinds, expected)} as this recipe has, "
                f"the checkpoint's is {_kind(kinds, found)}"
            )


def _states(keys: Iterable[str]) -> dict[str, frozenset[str]]:
    """What is kept of each parameter."""
    states: dict[str, set[str]] = {}
    for key in keys:
        if key.startswith(f"{OPTIMIZER}/"):
            states.setdefault(parameter_of(key), set()).add(key.rpartition("/")[2])
    return {name: frozenset(found) for name, found in states.items()}


def _kind(kinds: Mapping[frozenset[str], str], states: frozenset[str]) -> str:
    return kinds.get(states, f"one that keeps {', '.join(sorted(states))}")


def _named(name: str) -> str:
    return f"table {table_of(name)}" if is_table(name) else f"layer {name}"
