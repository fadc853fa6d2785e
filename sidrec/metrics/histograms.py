"""The streaming form: metrics of every row ever seen, from histograms of scores in fixed memory.

Shapes: N rows, S slices, K users of the sample, C = 2 classes (negative, positive), H bins, P bins of the pooled AUC.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup
from torchmetrics.utilities.distributed import gather_all_tensors

from sidrec.metrics.estimate import CountedPairs
from sidrec.metrics.pairs import Ints, PairCounts
from sidrec.metrics.rows import Rows
from sidrec.metrics.user_sample import FREE, admit, look_up, sampled_share, smallest, user_keys


@dataclass(frozen=True)
class Histograms:
    """Approximate metrics over all rows since the start or the last reset.

    GAUC and UAUC come from a uniform sample of users, each with a histogram of its own that holds all its rows; users
    are never mixed. Two errors, both told by `estimates()`: scores in one bin count as ties, which moves an AUC by
    at most half the share of its pairs in one bin; and a sample of users has a standard error, which is 0 as long as
    there are at most `users`. Where a handful of users has most of all rows, GAUC hangs on whether they are in the
    sample, and its standard error cannot know of those that are not. The pooled AUC counts all rows, in own bins.

    users: size of the sample. bins: per user and class. pooled_bins: per class.
    low, high: scores that equal bins divide, by default those of logits; scores beyond fall into the outermost bins.

    Memory on the metric's device: 8 * users * bins + 16 * pooled_bins bytes per slice, however many ranks; `compute`
    takes three times as much for a moment.

    Raises ValueError for sizes below 1 and an empty range.
    """

    users: int = 16_384
    bins: int = 128
    pooled_bins: int = 16_384
    low: float = -8.0
    high: float = 8.0

    def __post_init__(self) -> None:
        for name in ("users", "bins", "pooled_bins"):
            if getattr(self, name) < 1:
                raise ValueError(f"Histograms: expected {name} of at least 1, got {getattr(self, name)}")
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"Histograms: expected finite low < high, got low={self.low}, high={self.high}")

    def state(self, slices: int) -> dict[str, Tensor]:
        """Empty state: the sample's keys and places (see user_sample), its counts and those of all rows."""
        return {
            "key": torch.full((self.users,), FREE),
            "place": torch.arange(self.users),
            "by_user": torch.zeros((slices, self.users, 2, self.bins), dtype=torch.int32),
            "pooled": torch.zeros((slices, 2, self.pooled_bins), dtype=torch.int64),
        }

    def add(self, state: dict[str, Tensor], rows: Rows, bits: Sequence[int | None]) -> None:
        """Counts the rows, in place."""
        key_N = user_keys(rows.user_N)
        state["by_user"][:, admit(state["key"], state["place"], key_N)] = 0
        index_N, sampled_N = look_up(state["key"], key_N)
        class_N = rows.positive_N.long()
        pooled_N = class_N * self.pooled_bins + self._bin(rows.score_N, self.pooled_bins)
        by_user_N = (state["place"][index_N] * 2 + class_N) * self.bins + self._bin(rows.score_N, self.bins)
        for at, bit in enumerate(bits):
            inside_N = rows.inside(bit)
            _increment(state["pooled"][at], pooled_N[inside_N])
            _increment(state["by_user"][at], by_user_N[inside_N & sampled_N])

    def _bin(self, score_N: Tensor, bins: int) -> Tensor:
        """int64 [N] in [0, bins)."""
        return ((score_N - self.low) * (bins / (self.high - self.low))).clamp_(0, bins - 1).long()

    def merged(self, state: dict[str, Tensor], group: ProcessGroup | None) -> dict[str, Tensor]:
        """The sample of all ranks' users, and sums of counts. Collective: every rank of the group calls it."""
        key_K = smallest(torch.cat(gather_all_tensors(state["key"], group)), self.users)
        index_K, shared_K = look_up(key_K, state["key"])
        by_user = torch.zeros_like(state["by_user"])
        by_user.index_add_(1, index_K[shared_K], state["by_user"][:, state["place"][shared_K]])
        pooled = state["pooled"].clone()
        dist.all_reduce(by_user, group=group)
        dist.all_reduce(pooled, group=group)
        return {
            "key": key_K,
            "place": torch.arange(self.users, device=key_K.device),
            "by_user": by_user,
            "pooled": pooled,
        }

    def count(self, state: dict[str, Tensor], bits: Sequence[int | None]) -> list[CountedPairs]:
        """Counts the pairs of every slice, in the order of bits."""
        share = sampled_share(state["key"])
        return [self._count(state["by_user"][at], state["pooled"][at], share) for at in range(len(bits))]

    def _count(self, by_user_KCH: Tensor, pooled_CP: Tensor, share: float) -> CountedPairs:
        by_user, hidden_K = _binned_pairs(by_user_KCH.cpu().numpy().astype(np.int64))
        pooled, hidden_1 = _binned_pairs(pooled_CP.cpu().numpy()[None])
        return CountedPairs(by_user, pooled, hidden_K, int(hidden_1[0]), share)


def _increment(count: Tensor, index_N: Tensor) -> None:
    """Adds 1 to count, seen as one row, at every index; an index may come more than once."""
    count.view(-1).index_add_(0, index_N, torch.ones_like(index_N, dtype=count.dtype))


def _binned_pairs(count_VCH: Ints) -> tuple[PairCounts, Ints]:
    """Pairs of every group, rows in one bin as ties; and how many pairs these are, [V]. Exact below 2**62 pairs."""
    negatives_VH, positives_VH = count_VCH[:, 0], count_VCH[:, 1]
    below_VH = np.cumsum(negatives_VH, axis=1) - negatives_VH
    hidden_V = np.sum(positives_VH * negatives_VH, axis=1)
    twice_won_V = 2 * np.sum(positives_VH * below_VH, axis=1) + hidden_V
    return PairCounts(positives_VH.sum(axis=1), negatives_VH.sum(axis=1), twice_won_V), hidden_V
