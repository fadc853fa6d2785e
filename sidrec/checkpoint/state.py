"""The state of a model and its optimizer as tensor shards, for saving and loading under any plan and number of ranks.

Shapes: N ids met in an interval.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.fused import FusedOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from sidrec.checkpoint.dcp_storage import load_shards
from sidrec.checkpoint.row_state import (
    managed_collision_shards,
    managed_collision_shards_to_fill,
    restore_managed_collision,
    stored_counts,
    update_shards,
)
from sidrec.checkpoint.rowwise_adagrad_reshard import RowwiseAdagradReshard
from sidrec.checkpoint.stored_tables import StoredCheckpoint
from sidrec.checkpoint.tensor_shard import (
    DTYPE_NAMES,
    MODEL,
    OPTIMIZER,
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
from sidrec.model.fusion_and_gate import IMPRESSIONS
from sidrec.parallel.process_group import Ranks, run_on_all_ranks
from sidrec.parallel.sharding import lookups_of, row_updates, updates_read_by
from sidrec.parallel.update_counts import share_counts


def state_shards(model: DistributedModelParallel, optimizer: KeyedOptimizer | None, ranks: Ranks) -> list[TensorShard]:
    """This rank's shards of a checkpoint: views into model and optimizer.

    optimizer: None to leave out optimizer states, update counts and the intervals of managed-collision tables. States
    that the optimizer has not created yet are left out.
    """
    weights = model.state_dict()
    shards = _of_weights(weights, ranks)
    if optimizer is not None:
        shards += [*optimizer_shards(optimizer, weights, ranks.first), *update_shards(model, weights, ranks.first)]
        shards += managed_collision_shards(model, ranks)
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

    Update counts that an older version did not save begin at 0, after a warning. Converts row-wise Adagrad's state
    if a table's columns are cut differently now (`rowwise_adagrad_reshard`), and logs a warning. Raises
    CheckpointError, on all ranks: before anything is loaded, if tables, layers or optimizers differ from the
    model's, or if another number of ranks wrote managed-collision tables, whose rows belong to ranks (one rank
    alone can evaluate them); and if the checkpoint cannot be read.
    """
    index = run_on_all_ranks(ranks, lambda: read_index(path))
    weights = model.state_dict()
    run_on_all_ranks(ranks, lambda: check_model(path, index, weights))
    managed = run_on_all_ranks(
        ranks, lambda: managed_collision_shards_to_fill(path, index, model, optimizer is not None, ranks)
    )
    shards = _of_weights(weights, ranks)
    reshard = None
    if optimizer is not None or updates_read_by(model) is not None:
        shards += stored_counts(path, index, update_shards(model, weights, ranks.first), weights, ranks)
    if optimizer is not None:
        init_optimizer_states(optimizer, index.tensors)
        states = optimizer_shards(optimizer, weights, ranks.first)
        trained = [name for name in optimizer.params if has_local_rows(weights[name])]
        run_on_all_ranks(ranks, lambda: check_optimizer(path, index, trained, states))
        reshard = run_on_all_ranks(ranks, lambda: RowwiseAdagradReshard(path, index, weights, states))
        shards += reshard.shards
        if ranks.first:
            reshard.log_converted_tables()
    load_shards(path, index, [*shards, *managed], ranks.control)
    if reshard is not None:
        reshard.convert()
    restore_managed_collision(model, managed)
    share_counts(updates_read_by(model), row_updates(model))
    invalidate_caches(model)


def invalidate_caches(model: nn.Module) -> None:
    """Invalidates FBGEMM's row cache after loading."""
    for lookup in lookups_of(model):
        lookup.purge()


class Grown(Protocol):
    """What a larger model has more than the checkpoint it is read from."""

    def stored(self, shards: Iterable[TensorShard]) -> list[TensorShard]:
        """The shards to read for these."""

    def finish(self) -> None:
        """Fills the model, after these were read."""

    def keys_here(self, keys: Iterable[str]) -> set[str]:
        """The checkpoint's keys under the names of the model."""


def load_partially(
    found: StoredCheckpoint,
    model: DistributedModelParallel,
    optimizer: KeyedOptimizer | None,
    without: Collection[str],
    ranks: Ranks,
    grown: Grown | None = None,
) -> None:
    """Reads a checkpoint into a new model, and into its optimizer if given. Tables may have more rows than when saved.

    Rows beyond the checkpoint's keep their initial values, and have no optimizer state and no updates. without: tables
    that are not loaded. grown: layers that the checkpoint lacks or has with fewer inputs. Call `check_compatible`
    first. All ranks call it. Raises CheckpointError, on all ranks, if the checkpoint cannot be read.
    """
    index, whole = found.index, model.state_dict()
    shards = _stored_parts(state_shards(model, None, ranks), index, without)
    weights = {name: value for name, value in whole.items() if not belongs_to(name, without)}
    counts = _stored_parts(update_shards(model, whole, ranks.first), index, without)
    shards += stored_counts(found.path, index, counts, weights, ranks)
    reshard = None
    if optimizer is not None:
        init_optimizer_states(optimizer, grown.keys_here(index.tensors) if grown else index.tensors)
        states = _stored_parts(optimizer_shards(optimizer, whole, ranks.first), index, without)
        reshard = run_on_all_ranks(ranks, lambda: RowwiseAdagradReshard(found.path, index, weights, states))
        shards += reshard.shards
        if ranks.first:
            reshard.log_converted_tables()
    load_shards(found.path, index, grown.stored(shards) if grown else shards, ranks.control)
    if grown is not None:
        grown.finish()
    if reshard is not None:
        reshard.convert()
    share_counts(updates_read_by(model), row_updates(model))
    invalidate_caches(model)


def belongs_to(name: str, tables: Collection[str]) -> bool:
    """Whether a tensor belongs to one of the tables: weights, optimizer state, rows of a managed-collision table, or
    the impressions of its rows."""
    owners = ("embedding_bags", "_managed_collision_modules")
    of_rows = any(name.endswith(f".{IMPRESSIONS}{table}") for table in tables)
    return of_rows or any(f".{owner}.{table}." in name for table in tables for owner in owners)


def _stored_parts(shards: Iterable[TensorShard], index: CheckpointIndex, without: Collection[str]) -> list[TensorShard]:
    return [part for shard in shards if not belongs_to(shard.key, without) for part in _stored_rows(shard, index)]


def _stored_rows(shard: TensorShard, index: CheckpointIndex) -> list[TensorShard]:
    """The rows of a shard that the checkpoint has: the first ones, because ids are numbered in order of arrival."""
    by_row = is_table(parameter_of(shard.key)) or f".{IMPRESSIONS}" in shard.key
    stored = index.tensors.get(shard.key) if by_row else None
    if stored is None or len(stored.shape) != 2 or stored.shape[0] >= shard.shape[0]:
        return [shard]
    rows = min(len(shard.values), stored.shape[0] - shard.offset[0])
    shape = (stored.shape[0], *shard.shape[1:])
    return [TensorShard(shard.key, shape, shard.offset, shard.values[:rows], shard.owned)] if rows > 0 else []


# Optimizer states: FBGEMM's fused states and torch's get the same keys.


MOMENTUM = "momentum1"  # FBGEMM's name for the sum of squared gradients, per element or per row


def optimizer_shards(optimizer: KeyedOptimizer, weights: Mapping[str, Weight], owned: bool) -> list[TensorShard]:
    """The shards of an optimizer's states on this rank; views.

    weights: the parameters by name, as in the model's state_dict. owned: whether this rank saves replicated states.
    """
    return [
        shard
        for name, states in optimizer.state_dict()["state"].items()
        for shard in _of_parameter(name, weights[name], states, owned)
    ]


def init_optimizer_states(optimizer: KeyedOptimizer, keys: Collection[str]) -> None:
    """Creates the states of torch's optimizers, to load into; changes no weight.

    Parameters saved without optimizer state get none. keys: of the checkpoint's tensors.
    """
    saved = {parameter_of(key) for key in keys if key.startswith(f"{OPTIMIZER}/")}
    layers = {name for name in saved if not is_table(name)}
    for part in _torch_parts(optimizer):
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


def _torch_parts(optimizer: KeyedOptimizer) -> Iterator[KeyedOptimizer]:
    """The parts of an optimizer that run in torch; FBGEMM creates its own states at construction."""
    if isinstance(optimizer, CombinedOptimizer):
        for _, part in optimizer.optimizers:
            yield from _torch_parts(part)
    elif not isinstance(optimizer, FusedOptimizer):
        yield optimizer


def _of_parameter(name: str, weight: Weight, states: Mapping[str, Any], owned: bool) -> Iterator[TensorShard]:
    key = f"{OPTIMIZER}/{name}"
    if isinstance(weight, ShardedTensor):
        for state_name, state in states.items():
            assert state_name.endswith(f".{MOMENTUM}"), f"Adagrad keeps one state, got {state_name}"
            yield from _fused(key, weight, state)
    elif is_table(name):
        if SUM in states:  # torch's Adagrad also counts steps, for lr_decay, which is never set
            yield _replicated(key, weight, states[SUM], owned)
    else:
        for state_name, state in states.items():
            yield whole_tensor(f"{key}/{state_name}", state, owned)


def _replicated(key: str, weight: Tensor, state: Tensor, owned: bool) -> TensorShard:
    """torch's state of a replicated table, flat or not: per element, or one value per row."""
    if state.numel() == weight.numel():
        return whole_tensor(f"{key}/{SUM}", state.view_as(weight), owned)
    return whole_tensor(f"{key}/{ROW_SUM}", state.view(len(weight), 1), owned)


def _fused(key: str, weight: ShardedTensor, state: ShardedTensor) -> Iterator[TensorShard]:
    """FBGEMM's state of a sharded table: sharded as the table is, or one value per row for each shard of the columns.

    TorchRec concatenates the values of rows, column shard after column shard, whatever the table's layout.
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


# Compatibility of a checkpoint with model and optimizer, checked before anything is loaded.


TABLE_OPTIMIZERS = {frozenset({SUM}): "adagrad", frozenset({ROW_SUM}): "rowwise_adagrad", frozenset[str](): "sgd"}


LAYER_OPTIMIZERS = {
    frozenset({"step", "exp_avg", "exp_avg_sq"}): "adam or adamw",
    frozenset({"step", "sum"}): "adagrad",
    frozenset[str](): "none",
}
"""Optimizers by the names of the states that they keep: TABLE_OPTIMIZERS per table, LAYER_OPTIMIZERS per layer."""


def check_model(path: Path, index: CheckpointIndex, state: Mapping[str, Weight]) -> None:
    """Raises CheckpointError unless the checkpoint has exactly the tables and layers of a state_dict."""
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
            f"{path}: expected only the tables and layers of this recipe, got also the {_named(others[0])}"
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
    """Raises CheckpointError unless the checkpoint has the same optimizer states as this rank's optimizer.

    parameters: names of the parameters that the optimizer updates on this rank. shards: of its states.
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
    """Names of the states of each parameter."""
    states: dict[str, set[str]] = {}
    for key in keys:
        if key.startswith(f"{OPTIMIZER}/"):
            states.setdefault(parameter_of(key), set()).add(key.rpartition("/")[2])
    return {name: frozenset(found) for name, found in states.items()}


def _kind(kinds: Mapping[frozenset[str], str], states: frozenset[str]) -> str:
    return kinds.get(states, f"one that keeps {', '.join(sorted(states))}")


def _named(name: str) -> str:
    return f"table {table_of(name)}" if is_table(name) else f"layer {name}"
