"""A model and its optimizer as pieces: what a rank writes of them, and fills again whatever plan and ranks wrote it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from sidrec.checkpoint.index import read_index
from sidrec.checkpoint.model_fit import check_model, check_optimizer
from sidrec.checkpoint.optimizer_pieces import make_states, optimizer_pieces
from sidrec.checkpoint.piece import Piece, whole
from sidrec.checkpoint.piece_names import MODEL
from sidrec.checkpoint.row_sums import RowSums
from sidrec.checkpoint.slot_memory import resume_slots, room_for_slot_memory, slot_pieces
from sidrec.checkpoint.storage import load_pieces
from sidrec.checkpoint.weights import Weight, held, shape_of
from sidrec.parallel.lookups import lookups_of
from sidrec.parallel.process_group import Ranks, together


def pieces_of(model: DistributedModelParallel, optimizer: KeyedOptimizer | None, ranks: Ranks) -> list[Piece]:
    """What this rank holds of a checkpoint: views into model and optimizer, as they are now.

    optimizer: None where neither its state is wanted nor what else only training needs. States that it has not made yet
    are no pieces.
    """
    weights = model.state_dict()
    pieces = _of_weights(weights, ranks)
    if optimizer is not None:
        pieces += [*optimizer_pieces(optimizer, weights, ranks.first), *slot_pieces(model, ranks)]
    return pieces


def _of_weights(weights: Mapping[str, Weight], ranks: Ranks) -> list[Piece]:
    return [piece for name, value in weights.items() for piece in _of_weight(f"{MODEL}/{name}", value, ranks.first)]


def _of_weight(key: str, value: Weight, owned: bool) -> Iterable[Piece]:
    if not isinstance(value, ShardedTensor):
        return [whole(key, value, owned)]
    return [
        Piece(key, shape_of(value), tuple(shard.metadata.shard_offsets), shard.tensor)
        for shard in value.local_shards()
        if shard.tensor.numel()
    ]


def load_model(path: Path, model: DistributedModelParallel, optimizer: KeyedOptimizer | None, ranks: Ranks) -> None:
    """Reads a checkpoint into the model and, if given, its optimizer, whatever plan and ranks wrote it.

    Row-wise Adagrad's state of columns that are cut differently is converted as `row_sums` says, and the log says so.

    Raises CheckpointError, on all ranks: before anything is loaded, when the checkpoint has other tables, layers or
    optimizers than the model, and where other ranks wrote managed tables (their slots are theirs, but one rank can
    evaluate with all); and when it cannot be read.
    """
    index = together(ranks, lambda: read_index(path))
    weights = model.state_dict()
    together(ranks, lambda: check_model(path, index, weights))
    memory = together(ranks, lambda: room_for_slot_memory(path, index, model, optimizer is not None, ranks))
    pieces = _of_weights(weights, ranks)
    row_sums = None
    if optimizer is not None:
        make_states(optimizer, index.tensors)
        states = optimizer_pieces(optimizer, weights, ranks.first)
        trained = [name for name in optimizer.params if held(weights[name])]
        together(ranks, lambda: check_optimizer(path, index, trained, states))
        row_sums = together(ranks, lambda: RowSums(path, index, weights, states))
        pieces += row_sums.pieces
        if ranks.first:
            row_sums.say()
    load_pieces(path, index, [*pieces, *memory], ranks.control)
    if row_sums is not None:
        row_sums.convert()
    resume_slots(model, memory)
    forget_cached_rows(model)


def forget_cached_rows(model: nn.Module) -> None:
    """Rows that FBGEMM keeps in a cache, where a plan gives it one, are those of before."""
    for lookup in lookups_of(model):
        lookup.purge()
