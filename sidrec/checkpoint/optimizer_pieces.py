"""What optimizers keep of tables and layers, as pieces: FBGEMM's fused state and torch's under the same names."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.optim.fused import FusedOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer

from sidrec.checkpoint.piece import Piece, whole
from sidrec.checkpoint.piece_names import OPTIMIZER, ROW_SUM, SUM, is_table, parameter_of
from sidrec.checkpoint.weights import Weight, shape_of

MOMENTUM = "momentum1"  # what FBGEMM calls the sum of squared gradients, of elements or of rows


def optimizer_pieces(optimizer: KeyedOptimizer, weights: Mapping[str, Weight], owned: bool) -> list[Piece]:
    """The pieces of the states that an optimizer has on this rank; views.

    weights: the parameters, as the model's state_dict has them. owned: whether this rank writes what all ranks have.
    """
    return [
        piece
        for name, states in optimizer.state_dict()["state"].items()
        for piece in _of_parameter(name, weights[name], states, owned)
    ]


def make_states(optimizer: KeyedOptimizer, keys: Collection[str]) -> None:
    """Has torch's optimizers make the states of their first step, to be loaded into; changes no weight.

    A layer that no gradient had reached had none when it was saved, and has none again. keys: of the checkpoint's
    tensors.
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


def _of_parameter(name: str, weight: Weight, states: Mapping[str, Any], owned: bool) -> Iterator[Piece]:
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
            yield whole(f"{key}/{state_name}", state, owned)


def _replicated(key: str, weight: Tensor, state: Tensor, owned: bool) -> Piece:
    """torch's state of a replicated table, which may be flat: as large as the table, or one value per row."""
    if state.numel() == weight.numel():
        return whole(f"{key}/{SUM}", state.view_as(weight), owned)
    return whole(f"{key}/{ROW_SUM}", state.view(len(weight), 1), owned)


def _fused(key: str, weight: ShardedTensor, state: ShardedTensor) -> Iterator[Piece]:
    """FBGEMM's state of a sharded table: cut as the table is, or one value per row for each shard of the columns.

    TorchRec lays the values of rows end to end, column shard after column shard, whatever the table's own layout.
    """
    size = shape_of(weight)
    held = [shard for shard in state.local_shards() if shard.tensor.numel()]
    if len(shape_of(state)) == len(size):
        for shard in held:
            yield Piece(f"{key}/{SUM}", size, tuple(shard.metadata.shard_offsets), shard.tensor)
        return
    shards = sorted(weight.metadata().shards_metadata, key=lambda shard: shard.shard_offsets[1])
    laid_out = [(tuple(found.shard_offsets), tuple(found.shard_sizes)) for found in state.metadata().shards_metadata]
    columns = sorted({shard.shard_offsets[1] for shard in shards})
    for local in held:
        where = (tuple(local.metadata.shard_offsets), tuple(local.metadata.shard_sizes))
        row, column = shards[laid_out.index(where)].shard_offsets
        offset = (row, columns.index(column))
        yield Piece(f"{key}/{ROW_SUM}", (size[0], len(columns)), offset, local.tensor.view(-1, 1))
