"""From the rows of one catalog's tables to those of another, by the items that both catalogs hold.

Codes of two fits have nothing in common but their items. So a row of the new table takes from the rows of the old table
in which its items are, as often as it has items there. No codeword is compared: this holds for every learner, for
codebooks of another size, for composed granules and for hashed ones.

Shapes: I item ids, F features of a table, P places (an item's row for one feature, in both tables), S pairs of a new
and an old row that share items, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Sources(NamedTuple):
    """Pairs of rows in the order of the old ones. share_S: float32, what the new row takes of the old one."""

    new_S: np.ndarray
    old_S: np.ndarray
    share_S: np.ndarray

    def add(self, old_first: int, values_NW: Tensor, into_MW: Tensor) -> None:
        """Adds what the new rows, those of `into_MW`, take of the old rows from `old_first` on, `values_NW`."""
        first, last = np.searchsorted(self.old_S, (old_first, old_first + len(values_NW)))
        old_S = torch.from_numpy(self.old_S[first:last] - old_first)
        share_S1 = torch.from_numpy(self.share_S[first:last]).unsqueeze(1)
        into_MW.index_add_(0, torch.from_numpy(self.new_S[first:last]), values_NW[old_S] * share_S1)

    def replace(self, values_MW: Tensor, carried_MW: Tensor) -> None:
        """Replaces the new rows of a table that take from an old one by what `add` has gathered; others stay."""
        places = torch.from_numpy(self.new_S).unique()
        with torch.no_grad():
            values_MW.index_copy_(0, places.to(values_MW.device), carried_MW[places].to(values_MW))


@dataclass(frozen=True)
class CarriedRows:
    """The places of a table whose items have a row in both tables. rows, old_rows: of the tables, row 0 included."""

    new_P: np.ndarray
    old_P: np.ndarray
    rows: int
    old_rows: int

    @classmethod
    def of(cls, rows_IF: np.ndarray, old_rows_IF: np.ndarray, rows: int, old_rows: int) -> "CarriedRows":
        """rows_IF, old_rows_IF: by item id, 0 for none; old ones from `old_rows` on are left out."""
        ids = min(len(rows_IF), len(old_rows_IF))
        new_P, old_P = rows_IF[:ids].reshape(-1), old_rows_IF[:ids].reshape(-1)
        both_P = (new_P > 0) & (old_P > 0) & (old_P < old_rows)
        return cls(new_P[both_P].astype(np.int64), old_P[both_P].astype(np.int64), rows, old_rows)

    @cached_property
    def carried(self) -> int:
        """Number of new rows that take from an old one."""
        return len(np.unique(self.new_P))

    def means(self, first: int, last: int) -> Sources:
        """For the new rows in [first, last), numbered from `first`: each becomes the mean of its items' old rows."""
        return self._sources(first, last, self.new_P, self.rows)

    def parts(self, first: int, last: int) -> Sources:
        """For the same rows: each old row is divided among the new rows, by the items that they take from it."""
        return self._sources(first, last, self.old_P, self.old_rows)

    def _sources(self, first: int, last: int, whole_P: np.ndarray, wholes: int) -> Sources:
        items_W = np.bincount(whole_P, minlength=wholes)
        here_P = (self.new_P >= first) & (self.new_P < last)
        number_P = self.old_P[here_P] * (last - first) + self.new_P[here_P] - first
        number_S, place_S, items_S = np.unique(number_P, return_index=True, return_counts=True)
        share_S = items_S / items_W[whole_P[here_P][place_S]]
        return Sources(number_S % (last - first), number_S // (last - first), share_S.astype(np.float32))


def carried_text(rows: Mapping[str, CarriedRows]) -> str:
    """How many rows of each table are carried, and how many are not. Row 0, of items without a SID, is not counted."""
    return ", ".join(
        f"{name} {of.carried:,} of {of.rows - 1:,} rows ({of.rows - 1 - of.carried:,} begin anew)"
        for name, of in rows.items()
    )
