"""Rows as a metric takes them in: checked, flat, on the metric's device.

Shapes: N rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sidrec.schema import ContractError


@dataclass(frozen=True)
class Rows:
    """score_N: float64. positive_N: uint8, 0 or 1. user_N: int64. slices_N: uint8, bit s is set for rows of slice s."""

    score_N: Tensor
    positive_N: Tensor
    user_N: Tensor
    slices_N: Tensor

    def inside(self, bit: int | None) -> Tensor:
        """bool [N]: the rows of one slice; None stands for all rows."""
        return torch.ones_like(self.slices_N, dtype=torch.bool) if bit is None else (self.slices_N >> bit) & 1 == 1

    def last(self, count: int) -> "Rows":
        """The last `count` rows, or all where there are fewer."""
        start = max(len(self.score_N) - count, 0)
        return Rows(self.score_N[start:], self.positive_N[start:], self.user_N[start:], self.slices_N[start:])


def checked_rows(where: str, scores: Tensor, labels: Tensor, users: Tensor, device: torch.device) -> Rows:
    """Rows that are in no slice yet.

    scores: floating, finite. labels: 0 or 1, any type. users: integers. All [N] or [N, 1]; N may be 0.

    Raises ContractError, which names `where` and the argument.
    """
    if not scores.is_floating_point():
        raise ContractError(f"{where}, scores", "floating point", scores.dtype)
    require_integers(f"{where}, users", users)
    for name, tensor in (("scores", scores), ("labels", labels), ("users", users)):
        if tensor.numel() != (tensor.shape[0] if tensor.ndim else 0):
            raise ContractError(f"{where}, {name}", "shape [N] or [N, 1]", list(tensor.shape))
        if tensor.numel() != scores.numel():
            raise ContractError(f"{where}, {name}", f"{scores.numel()} rows, as many as scores", tensor.numel())
    score_N = scores.detach().reshape(-1).to(device, torch.float64)
    label_N = labels.detach().reshape(-1).to(device)
    _refuse_first(f"{where}, scores", "finite numbers", score_N, ~torch.isfinite(score_N))
    _refuse_first(f"{where}, labels", "0 or 1", label_N, (label_N != 0) & (label_N != 1))
    return Rows(
        score_N,
        label_N.to(torch.uint8),
        users.detach().reshape(-1).to(device, torch.int64),
        torch.zeros(len(score_N), dtype=torch.uint8, device=device),
    )


def require_integers(where: str, ids: Tensor) -> None:
    """Raises ContractError unless the ids are of an integer type."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ContractError(where, "integers", ids.dtype)


def _refuse_first(where: str, expected: str, value_N: Tensor, wrong_N: Tensor) -> None:
    if wrong_N.any():
        row = int(wrong_N.nonzero()[0])
        raise ContractError(where, expected, f"{value_N[row].item()} in row {row} of the batch")
