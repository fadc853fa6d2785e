"""The exact form: metrics of the latest rows of every rank, in a ring of fixed size.

Shapes: N rows, W rows of the window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torchmetrics.utilities.distributed import gather_all_tensors

from sidrec.metrics.estimate import CountedPairs
from sidrec.metrics.pairs import pair_counts
from sidrec.metrics.rows import Rows

RING = ("score", "positive", "user", "slices")


@dataclass(frozen=True)
class Window:
    """Exact metrics over each rank's latest `rows` rows.

    rows: at least 1. 18 bytes per row on the metric's device; `compute` gathers the windows of all ranks on each rank
    and sorts them in numpy, so make it rare where ranks times rows is large.

    Raises ValueError when rows is below 1.
    """

    rows: int = 1_000_000

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"Window: expected at least 1 row, got rows={self.rows}")

    def state(self, slices: int) -> dict[str, Tensor]:
        """Empty state: the ring, and how many rows it has ever seen. Slices need no room of their own."""
        return {
            "seen": torch.zeros((), dtype=torch.int64),
            "score": torch.zeros(self.rows, dtype=torch.float64),
            "positive": torch.zeros(self.rows, dtype=torch.uint8),
            "user": torch.zeros(self.rows, dtype=torch.int64),
            "slices": torch.zeros(self.rows, dtype=torch.uint8),
        }

    def add(self, state: dict[str, Tensor], rows: Rows, bits: Sequence[int | None]) -> None:
        """Writes the rows over the oldest ones, in place."""
        kept = rows.last(self.rows)
        seen = state["seen"] + len(rows.score_N)
        place_N = (seen - len(kept.score_N) + torch.arange(len(kept.score_N), device=seen.device)) % self.rows
        for name, value_N in zip(RING, (kept.score_N, kept.positive_N, kept.user_N, kept.slices_N), strict=True):
            state[name].index_copy_(0, place_N, value_N)
        state["seen"].copy_(seen)

    def merged(self, state: dict[str, Tensor], group: ProcessGroup | None) -> dict[str, Tensor]:
        """The rows of all ranks, in rank order. Collective: every rank of the group calls it, rows or none."""
        filled = self._filled(state)
        ring = {name: torch.cat(gather_all_tensors(state[name][:filled], group)) for name in RING}
        return {"seen": torch.tensor(len(ring["score"]), device=state["seen"].device), **ring}

    def count(self, state: dict[str, Tensor], bits: Sequence[int | None]) -> list[CountedPairs]:
        """Counts the pairs of every slice, in the order of bits."""
        filled = self._filled(state)
        rows = Rows(*(state[name][:filled].cpu() for name in RING))
        return [_count(rows, rows.inside(bit)) for bit in bits]

    def _filled(self, state: dict[str, Tensor]) -> int:
        return min(int(state["seen"]), len(state["score"]))


def _count(rows: Rows, inside_N: Tensor) -> CountedPairs:
    label_N = rows.positive_N[inside_N].numpy().astype(np.float64)
    score_N = rows.score_N[inside_N].numpy()
    users, group_N = np.unique(rows.user_N[inside_N].numpy(), return_inverse=True)
    return CountedPairs(
        by_user=pair_counts(label_N, score_N, group_N.astype(np.int64)),
        pooled=pair_counts(label_N, score_N, np.zeros(len(label_N), dtype=np.int64)),
        hidden_by_user_V=np.zeros(len(users), dtype=np.int64),
        hidden=0,
        sampled=1.0,
    )
