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

PART = 1 << 20
"""Values that are looked at together."""


def check_state(pieces: Sequence[Piece], step: int, ranks: Ranks) -> None:
    """Refuses to go on from a state that is not finite. step: steps done, for the sentence.

    Every rank calls it with its pieces. Raises NonFiniteError, on all ranks, naming the first such piece.
    """
    found = next((piece for piece in pieces if not _is_finite(piece.values)), None)
    agree(ranks, None if found is None else NonFiniteError(_sentence(found, step)))


@torch.no_grad()
def _is_finite(values: Tensor) -> bool:
    """A part at a time, as a sum in float64 first makes a float64 copy of what it sums."""
    if not values.is_floating_point() or not values.numel():
        return True
    rows = values.reshape(1) if values.dim() == 0 else values
    return all(_part_is_finite(part) for part in rows.split(max(1, PART // rows[0].numel())))


def _part_is_finite(part: Tensor) -> bool:
    """The sum is finite for all states but those on the brink; those are looked at."""
    return bool(torch.isfinite(part.sum(dtype=torch.float64))) or bool(torch.isfinite(part).all())


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
