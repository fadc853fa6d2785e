"""Item slices head, torso, tail and cold: cut by train impressions, looked up for rows on a metric's device.

Shapes: I items, N rows, S slices.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sidrec.config import Recipe
from sidrec.data.item_tables import read_train_impressions
from sidrec.data.rows import split_items
from sidrec.io.places import Place
from sidrec.metrics.pairs import require_integers
from sidrec.schema import ITEMS, LOG, UNKNOWN_ID, ContractError

MOST = 8  # bits of a byte
TRAIN = "train"


class Slices(Protocol):
    """Named sets of items, such as head, torso, tail and cold from `slice_items`."""

    @property
    def item_I(self) -> NDArray[np.int64]:  # noqa: N802
        """Item ids, ascending, each once."""

    @property
    def members(self) -> Mapping[str, NDArray[np.bool_]]:
        """Slice name -> bool [I]; an item may be in several slices or in none."""


class SliceLookup(nn.Module):
    """Looks up the slices of rows by their items, in one byte per item on the metric's device.

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


# Head, torso, tail and cold items: the slices that every metric is also reported on.
#
# Items are ranked by their impressions in the splits trained on, most first, equal counts by ascending item id. Of n
# items `head` is the first round(head_share * n), `tail` the last round(tail_share * n), `torso` the rest.
# `cold` is the items without any of these impressions; all of them are tail as well, even where they outnumber its
# share.


ALL = "all"
SLICES = (ALL, "head", "torso", "tail", "cold")


@dataclass(frozen=True)
class ItemSlices:
    """Which items are head, torso, tail and cold. Shapes: I items, in ascending order of id; N rows.

    item_I: int64 ids. members: slice name -> bool [I].
    """

    item_I: NDArray[np.int64]
    members: dict[str, NDArray[np.bool_]]

    def masks(self, item_N: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yields (slice, bool mask over rows). Rows of the unknown item (id 0) are in `all` only.

        Raises ContractError for an item that items.parquet does not list.
        """
        known_N = item_N != UNKNOWN_ID
        position_N = np.searchsorted(self.item_I, item_N)
        inside_N = position_N < len(self.item_I)
        position_N[~inside_N] = 0
        listed_N = inside_N & (self.item_I[position_N] == item_N) if len(self.item_I) else inside_N
        stray = np.flatnonzero(known_N & ~listed_N)
        if len(stray):
            raise ContractError("predictions, column item_id", "items of items.parquet", int(item_N[stray[0]]))
        yield ALL, np.ones(len(item_N), dtype=bool)
        for name, member_I in self.members.items():
            mask_N = np.zeros(len(item_N), dtype=bool)
            mask_N[known_N] = member_I[position_N[known_N]]
            yield name, mask_N


def slice_items(
    item_I: NDArray[np.int64], impressions_I: NDArray[np.int64], head_share: float, tail_share: float
) -> ItemSlices:
    """Ranks the items and cuts the slices.

    Raises ValueError when head and tail overlap, ContractError for an item given twice.
    """
    if head_share + tail_share > 1:
        raise ValueError(f"evaluate: expected head_share + tail_share of at most 1, got {head_share} + {tail_share}")
    unique, first_I = np.unique(item_I, return_index=True)
    if len(unique) < len(item_I):
        repeated = np.delete(item_I, first_I)[0]
        raise ContractError("items.parquet, column item_id", "each item once", f"{repeated} twice")
    item_I, impressions_I = item_I[first_I], impressions_I[first_I]
    rank_I = np.empty(len(item_I), dtype=np.int64)
    rank_I[np.lexsort((item_I, -impressions_I))] = np.arange(len(item_I))
    cold_I = impressions_I == 0
    tail_I = (rank_I >= len(item_I) - round(tail_share * len(item_I))) | cold_I
    head_I = (rank_I < round(head_share * len(item_I))) & ~tail_I
    return ItemSlices(item_I, {"head": head_I, "torso": ~head_I & ~tail_I, "tail": tail_I, "cold": cold_I})


def load_item_slices(
    items: Place, head_share: float, tail_share: float, train_on: Sequence[str] = (TRAIN,)
) -> ItemSlices:
    """The slices of items.parquet. train_on: the splits that the model is trained on; rows of all of them, in the log
    beside that file, count as impressions.

    Raises ContractError naming the column that is wrong.
    """
    item_I, impressions_I = read_train_impressions(items)
    order_I = np.argsort(item_I, kind="stable")
    for split in train_on:
        if split != TRAIN:
            item_N = split_items(items.parent / LOG, split)
            place_N = np.minimum(np.searchsorted(item_I, item_N, sorter=order_I), len(item_I) - 1)
            row_N = order_I[place_N]
            impressions_I = impressions_I + np.bincount(row_N[item_I[row_N] == item_N], minlength=len(item_I))
    return slice_items(item_I, impressions_I, head_share, tail_share)


def recipe_slices(recipe: Recipe) -> ItemSlices:
    """The slices that a recipe's runs are measured on. Raises ContractError naming the column that is wrong."""
    train_on = recipe.data.train_on
    config = recipe.evaluate
    return load_item_slices(recipe.data.path / ITEMS, config.head_share, config.tail_share, train_on)
