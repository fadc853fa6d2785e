"""What optimizers keep of tables and layers, as pieces: FBGEMM's fused state and torch's under the same names."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from sidrec.checkpoint.piece import Piece, whole

SUM, ROW_SUM = "sum", "row_sum"
MOMENTUM = "momentum1"  # what FBGEMM calls the sum of squared gradients, of elements or of rows


def state_pieces(key: str, weight: Tensor | ShardedTensor, states: Mapping[str, Any], owned: bool) -> Iterator[Piece]:
    """The pieces of what an optimizer keeps of one parameter, named KEY/STATE; views.

    weight: the parameter as the state_dict has it. states: as the optimizer's state_dict has them. owned: whether this
    rank writes what all ranks have.
    """
    if isinstance(weight, ShardedTensor):
        for name, state in states.items():
            assert name.endswith(f".{MOMENTUM}"), f"Adagrad keeps one state, got {name}"
            yield from _fused(key, weight, state)
    elif ".embedding_bags." in key:
        if SUM in states:  # the step that torch's Adagrad counts beside it matters only to a decay that nobody sets
            yield _replicated(key, weight, states[SUM], owned)
    else:
        for name, state in states.items():
            yield whole(f"{key}/{name}", state, owned)


def _replicated(key: str, weight: Tensor, state: Tensor, owned: bool) -> Piece:
    """torch's state of a replicated table, which may be flat: as large as the table, or one value per row."""
    if state.numel() == weight.numel():
        return whole(f"{key}/{SUM}", state.view_as(weight), owned)
    return whole(f"{key}/{ROW_SUM}", state.view(len(weight), 1), owned)


def _fused(key: str, weight: ShardedTensor, state: ShardedTensor) -> Iterator[Piece]:
    """FBGEMM's state of a sharded table: cut as the table is, or one value per row for each shard of the columns.

    TorchRec lays the values of rows end to end, column shard after column shard, whatever the table's own layout.
    """
    size = tuple(weight.size())
    held = [shard for shard in state.local_shards() if shard.tensor.numel()]
    if len(state.size()) == len(size):
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
