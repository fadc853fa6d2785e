"""The two bounded forms of a metric's state: `Histograms` (approximate, all rows) and `Window` (exact, latest rows).

Shapes: N rows, S slices, K users of the sample, M users new to it, C = 2 classes (negative, positive), H bins, P bins
of the pooled AUC, V groups, W rows of the window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup
from torchmetrics.utilities.distributed import gather_all_tensors

from sidrec.metrics.pairs import CountedPairs, Ints, PairCounts, Rows, pair_counts


@dataclass(frozen=True)
class Histograms:
    """Approximate metrics over all rows since the start or the last reset.

    GAUC and UAUC come from a uniform sample of users. Each user of the sample has a histogram of all its rows. The
    result has two errors, both in `estimates()`. Binning: scores in one bin count as ties, which changes an AUC by at
    most half the share of pairs within one bin. Sampling: a standard error, 0 for at most `users` users. If a few users
    have most of the rows, GAUC depends on whether the sample contains them, which the standard error cannot show. The
    pooled AUC counts all rows, in bins of its own.

    users: size of the sample. bins: per user and class. pooled_bins: per class.
    low, high: range of scores, divided into equal bins; the default suits logits. Scores outside count in the outermost
    bins.

    Memory on the metric's device: 8 * users * bins + 16 * pooled_bins bytes per slice, for any number of ranks;
    `compute` needs three times as much temporarily.

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
        """Empty state: the sample's keys and places (see `admit`), its counts and those of all rows."""
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
    """Adds 1 to the flattened `count` at every index; indices may repeat."""
    count.view(-1).index_add_(0, index_N, torch.ones_like(index_N, dtype=count.dtype))


def _binned_pairs(count_VCH: Ints) -> tuple[PairCounts, Ints]:
    """Pairs of every group, rows in one bin as ties, and the number of these ties, [V]. Exact below 2**62 pairs."""
    negatives_VH, positives_VH = count_VCH[:, 0], count_VCH[:, 1]
    below_VH = np.cumsum(negatives_VH, axis=1) - negatives_VH
    hidden_V = np.sum(positives_VH * negatives_VH, axis=1)
    twice_won_V = 2 * np.sum(positives_VH * below_VH, axis=1) + hidden_V
    return PairCounts(positives_VH.sum(axis=1), negatives_VH.sum(axis=1), twice_won_V), hidden_V


# The sample of users: those with the K smallest keys (a bottom-K sketch: Cohen & Kaplan, PODC 2007).
#
# The key is a pseudorandom bijection of the user id, so no two users share one. The K-th smallest key never rises: a
# user of the final sample was in it from its first row on, so its rows are complete. For the same reason samples of
# ranks merge without loss: a user among the K smallest of all ranks is among the K smallest of each rank that met it.


FREE = torch.iinfo(torch.int64).max
"""Key of a free place: the largest, so that free places are filled first."""
SMALLEST, SPAN = -(2.0**63), 2.0**64


def user_keys(user_N: Tensor) -> Tensor:
    """int64 [N], a bijection of int64: splitmix64's finaliser (Steele, Lea & Flood, OOPSLA 2014), modulo 2**64."""
    key_N = user_N
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key_N = (key_N ^ _shifted(key_N, shift)) * (factor - 2**64)
    return key_N ^ _shifted(key_N, 31)


def _shifted(key_N: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign."""
    return (key_N >> by) & ((1 << (64 - by)) - 1)


def admit(key_K: Tensor, place_K: Tensor, key_N: Tensor) -> Tensor:
    """Admits users into the sample, in place. Returns the places [M] of new users, whose counts must restart at 0.

    key_N: keys of the users of a batch. key_K: int64, ascending. place_K: the index of each key's counts; a new user
    takes over the place of the user with the largest key, who leaves.
    """
    distinct = torch.unique(key_N)
    _, known = look_up(key_K, distinct)
    fresh = distinct[~known][: len(key_K)]
    # The m-th smallest new key enters if it is smaller than the m-th largest key of the sample, which leaves.
    entering = int((fresh < key_K.flip(0)[: len(fresh)]).sum())
    staying = len(key_K) - entering
    freed_M = place_K[staying:].clone()
    if entering:
        keys, order = torch.cat([key_K[:staying], fresh[:entering]]).sort(stable=True)
        key_K.copy_(keys)
        place_K.copy_(torch.cat([place_K[:staying], freed_M])[order])
    return freed_M


def look_up(key_K: Tensor, key_N: Tensor) -> tuple[Tensor, Tensor]:
    """For each key its index into key_K, and whether it is there (bool); if not, the index is arbitrary."""
    index_N = torch.searchsorted(key_K, key_N).clamp_(max=len(key_K) - 1)
    return index_N, key_K[index_N] == key_N


def smallest(keys: Tensor, users: int) -> Tensor:
    """The `users` smallest distinct keys, ascending, padded with FREE."""
    distinct = torch.unique(keys)[:users]
    return torch.cat([distinct, distinct.new_full((users - len(distinct),), FREE)])


def sampled_share(key_K: Tensor) -> float:
    """The share of users in the sample: 1 while it has free places, else the share of the key range it covers."""
    last = int(key_K[-1])
    return 1.0 if last == FREE else (last - SMALLEST + 1.0) / SPAN


# The window: the latest rows of every rank, in a ring buffer.


RING = ("score", "positive", "user", "slices")


@dataclass(frozen=True)
class Window:
    """Exact metrics over each rank's latest `rows` rows.

    rows: at least 1. Memory: 18 bytes per row on the metric's device. `compute` gathers all ranks' windows on each rank
    and sorts them in numpy: call it rarely if ranks times rows is large.

    Raises ValueError when rows is below 1.
    """

    rows: int = 1_000_000

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"Window: expected at least 1 row, got rows={self.rows}")

    def state(self, slices: int) -> dict[str, Tensor]:
        """Empty state: the ring, and the number of rows seen. Slices need no extra memory."""
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
        """The rows of all ranks, in rank order. Collective: every rank of the group calls it, also one without rows."""
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
