"""A model and its optimizer as pieces, under names that do not depend on how ranks share the tables.

model/NAME            weights and buffers, named as in the state_dict; a table is [rows, width] however it is sharded
optimizer/NAME/sum    element-wise Adagrad of a table, [rows, width]
optimizer/NAME/row_sum  row-wise Adagrad of a table, [rows, S] for S shards of its columns; 1 where they are not cut
optimizer/NAME/STATE  what torch's optimizer keeps of a dense layer
ranks/RANK/...        what belongs to one rank
"""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from sidrec.checkpoint.index import read_index
from sidrec.checkpoint.piece import Piece, whole
from sidrec.checkpoint.slot_memory import resume_slots, room_for_slot_memory, slot_pieces
from sidrec.checkpoint.storage import load_pieces
from sidrec.checkpoint.table_state import state_pieces
from sidrec.parallel.process_group import Ranks, together

MODEL, OPTIMIZER = "model", "optimizer"


def pieces_of(model: DistributedModelParallel, optimizer: KeyedOptimizer | None, ranks: Ranks) -> list[Piece]:
    """What this rank holds of a checkpoint: views into model and optimizer, so that what is read into them is loaded.

    optimizer: None where its state is not wanted. States that it has not made yet are no pieces.
    """
    state = model.state_dict()
    pieces = [piece for name, value in state.items() for piece in _of_model(f"{MODEL}/{name}", value, ranks.first)]
    if optimizer is not None:
        pieces += slot_pieces(model, ranks)
        for name, states in optimizer.state_dict()["state"].items():
            pieces += state_pieces(f"{OPTIMIZER}/{name}", state[name], states, ranks.first)
    return pieces


def _of_model(key: str, value: Tensor | ShardedTensor, owned: bool) -> Iterable[Piece]:
    if not isinstance(value, ShardedTensor):
        return [whole(key, value, owned)]
    return [
        Piece(key, tuple(value.size()), tuple(shard.metadata.shard_offsets), shard.tensor)
        for shard in value.local_shards()
        if shard.tensor.numel()  # ranks with fewer rows than shards hold empty ones
    ]


def load_model(path: Path, model: DistributedModelParallel, optimizer: KeyedOptimizer | None, ranks: Ranks) -> None:
    """Reads a checkpoint into the model and, if given, its optimizer, whatever plan and ranks wrote it.

    Raises CheckpointError, on all ranks, when it cannot be read or holds other tables or layers than the model, and
    where managed tables were written by other ranks: their slots are theirs, except that one rank can evaluate all.
    """
    index = together(ranks, lambda: read_index(path))
    if optimizer is not None:
        _make_states(optimizer)
    pieces = [piece for piece in pieces_of(model, optimizer, ranks) if not piece.key.startswith("ranks/")]
    room = together(ranks, lambda: room_for_slot_memory(path, index, model, optimizer is not None, ranks))
    load_pieces(path, pieces + room, ranks.control)
    resume_slots(model, room)


def _make_states(optimizer: KeyedOptimizer) -> None:
    """Has torch's optimizers make the states that they would make in their first step, and changes no weight."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # a gradient of zero still decays weights
    optimizer.init_state()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)  # also tells FBGEMM the rate
