"""Which slices an item is in, as one byte per item that lives on the metric's device.

Shapes: I items, N rows, S slices.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sidrec.metrics.rows import require_integers
from sidrec.schema import UNKNOWN_ID, ContractError

MOST = 8  # bits of a byte


class Slices(Protocol):
    """Named sets of items, as sidrec.train.slices.slice_items cuts them: head, torso, tail, cold."""

    @property
    def item_I(self) -> NDArray[np.int64]:  # noqa: N802
        """Item ids, ascending, each once."""

    @property
    def members(self) -> Mapping[str, NDArray[np.bool_]]:
        """Slice name -> bool [I]; an item may be in several slices or in none."""


class ItemSlices(nn.Module):
    """Looks up the slices of rows by their items.

    Raises ContractError for ids that are not ascending, members of another length, no items and more than 8 slices.
    """

    item_I: Tensor
    bits_I: Tensor

    def __init__(self, slices: Slices) -> None:
        super().__init__()
        _check(slices)
        self.names = tuple(slices.members)
        bits_I = np.zeros(len(slices.item_I), dtype=np.uint8)
        for bit, member_I in enumerate(slices.members.values()):
            bits_I |= member_I.astype(np.uint8) << bit
        self.register_buffer("item_I", torch.as_tensor(slices.item_I.copy()), persistent=False)
        self.register_buffer("bits_I", torch.as_tensor(bits_I), persistent=False)

    def look_up(self, where: str, items: Tensor) -> Tensor:
        """uint8 [N]: bit s is set for rows of slice s, in the order of `names`; none is for the unknown item, id 0.

        items: integers [N] or [N, 1]. Raises ContractError, which names `where`, for an item that is not listed.
        """
        require_integers(f"{where}, items", items)
        item_N = items.detach().reshape(-1).to(self.item_I.device, torch.int64)
        index_N = torch.searchsorted(self.item_I, item_N).clamp_(max=len(self.item_I) - 1)
        listed_N = self.item_I[index_N] == item_N
        stray_N = ~listed_N & (item_N != UNKNOWN_ID)
        if stray_N.any():
            raise ContractError(f"{where}, items", "items of the slices", int(item_N[stray_N][0]))
        return self.bits_I[index_N] * (item_N != UNKNOWN_ID)


def _check(slices: Slices) -> None:
    where = "SlicedAuc, slices"
    if not 1 <= len(slices.members) <= MOST:
        raise ContractError(where, f"1 to {MOST} slices", len(slices.members))
    if len(slices.item_I) == 0:
        raise ContractError(f"{where}, item_I", "at least one item", "none")
    if (np.diff(slices.item_I) <= 0).any():
        raise ContractError(f"{where}, item_I", "ids in ascending order, each once", "another order")
    for name, member_I in slices.members.items():
        if member_I.shape != slices.item_I.shape or member_I.dtype != np.bool_:
            expected = f"bool {list(slices.item_I.shape)}"
            raise ContractError(f"{where}, {name}", expected, f"{member_I.dtype} {list(member_I.shape)}")
