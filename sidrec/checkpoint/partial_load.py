"""What a checkpoint holds, put into a new model whose tables may have grown since, and which may leave tables out.

Shapes: R rows of a table, D its width.
"""

from collections.abc import Collection, Iterable

from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from sidrec.checkpoint.dcp_storage import load_pieces
from sidrec.checkpoint.rowwise_adagrad_reshard import RowSums
from sidrec.checkpoint.state import forget_cached_rows, make_states, optimizer_pieces, pieces_of
from sidrec.checkpoint.stored_tables import StoredCheckpoint
from sidrec.checkpoint.tensor_shard import CheckpointIndex, Piece
from sidrec.parallel.process_group import Ranks, run_on_all_ranks


def take_over(
    found: StoredCheckpoint,
    model: DistributedModelParallel,
    optimizer: KeyedOptimizer | None,
    without: Collection[str],
    ranks: Ranks,
) -> None:
    """Reads a checkpoint into a model that has its first values, and into its optimizer if given.

    Rows that a table has beyond the checkpoint's keep their first values, and no state. without: tables that keep
    theirs altogether. All ranks call it once `check_fit` has found that they fit. Raises CheckpointError, on all ranks,
    where the checkpoint cannot be read.
    """
    index = found.index
    pieces = _old(pieces_of(model, None, ranks), index, without)
    row_sums = None
    if optimizer is not None:
        make_states(optimizer, index.tensors)
        weights = {name: value for name, value in model.state_dict().items() if not is_of(name, without)}
        states = _old(optimizer_pieces(optimizer, model.state_dict(), ranks.first), index, without)
        row_sums = run_on_all_ranks(ranks, lambda: RowSums(found.path, index, weights, states))
        pieces += row_sums.pieces
        if ranks.first:
            row_sums.say()
    load_pieces(found.path, index, pieces, ranks.control)
    if row_sums is not None:
        row_sums.convert()
    forget_cached_rows(model)


def is_of(name: str, tables: Collection[str]) -> bool:
    """Whether a tensor of model or optimizer belongs to one of the tables, the slots of a managed one among them."""
    owners = ("embedding_bags", "_managed_collision_modules")
    return any(f".{owner}.{table}." in name for table in tables for owner in owners)


def _old(pieces: Iterable[Piece], index: CheckpointIndex, without: Collection[str]) -> list[Piece]:
    return [part for piece in pieces if not is_of(piece.key, without) for part in _old_rows(piece, index)]


def _old_rows(piece: Piece, index: CheckpointIndex) -> list[Piece]:
    """The rows of a piece that the checkpoint's tensor has too: the first ones, as ids are numbered as they come."""
    stored = index.tensors.get(piece.key)
    if stored is None or len(stored.shape) != 2 or stored.shape[0] >= piece.shape[0]:
        return [piece]
    rows = min(len(piece.values), stored.shape[0] - piece.offset[0])
    shape = (stored.shape[0], *piece.shape[1:])
    return [Piece(piece.key, shape, piece.offset, piece.values[:rows], piece.owned)] if rows > 0 else []
