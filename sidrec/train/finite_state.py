"""What a checkpoint must not hold: weights or optimizer states that are not finite.

A step may be finite and still leave such behind, where a learning rate takes a weight out of float32's range.

Shapes: R rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sidrec.checkpoint.piece import Piece
from sidrec.parallel.process_group import Ranks, agree
from sidrec.train.non_finite import NonFiniteError
from sidrec.train.non_finite_cause import NAMED


def check_state(pieces: Sequence[Piece], step: int, ranks: Ranks) -> None:
    """Refuses to go on from a state that is not finite. step: steps done, for the sentence.

    Every rank calls it with its pieces. Raises NonFiniteError, on all ranks, naming the first such piece.
    """
    found = next((piece for piece in pieces if not _is_finite(piece.values)), None)
    agree(ranks, None if found is None else NonFiniteError(_sentence(found, step)))


@torch.no_grad()
def _is_finite(values: Tensor) -> bool:
    """A sum in which a value is not finite is not finite either, and costs one fast pass and no memory. That of finite
    values is, except on the brink: then each is looked at."""
    if not values.is_floating_point() or torch.isfinite(values.sum()):
        return True
    return bool(torch.isfinite(values).all())


def _sentence(piece: Piece, step: int) -> str:
    where = f"tensor {piece.key}"
    if piece.values.dim() > 1:
        bad_R = ~torch.isfinite(piece.values.detach()).flatten(start_dim=1).all(dim=1)
        rows = (bad_R.nonzero().flatten() + piece.offset[0]).tolist()
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        where += f", {'rows' if len(rows) > 1 else 'row'} {', '.join(map(str, rows[:NAMED]))}{more}"
    return (
        f"step {step}: expected finite weights and optimizer states to save, got others in {where}; no checkpoint "
        "holds them; lower learning rates may help, from the newest checkpoint on or from the start"
    )
