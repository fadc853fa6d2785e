"""The input of a plugged model's gate: how often the target was shown, from the batch or fixed per item.

Shapes: I item ids, N samples, S statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sidrec.schema import ContractError


@dataclass(frozen=True)
class StatFeatures:
    """Counts in the batch: features of the KeyedJaggedTensor that no table reads.

    names: S features. A row's value is the target's count as of that row, stored as an integer id; no value means 0.
    mean_S, std_S: moments of log1p(count) over rows of the training log, to standardise with; without them log1p is not
        standardised.
    sequences: feature of a sequence of items -> its S features, a count for each of its ids; for `SidCoord.sequences`.

    Raises ContractError for moments or features that are not one per name.
    """

    names: tuple[str, ...]
    mean_S: tuple[float, ...] = ()
    std_S: tuple[float, ...] = ()
    sequences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.names:
            raise ContractError("StatFeatures, names", "at least one feature", "none")
        for name, moments in (("mean_S", self.mean_S), ("std_S", self.std_S)):
            if moments and len(moments) != len(self.names):
                raise ContractError(f"StatFeatures, {name}", f"one value for each of {self.names}", len(moments))
        for feature, names in self.sequences.items():
            if len(names) != len(self.names):
                expected = f"one feature for each of {self.names}"
                raise ContractError(f"StatFeatures, sequences, {feature}", expected, names)

    def of(self, feature: str, target: str) -> tuple[str, ...]:
        """Features with a count for each id of `feature`; the target's are its own.

        Raises ContractError if there are none.
        """
        if feature not in self.sequences and feature != target:
            expected = (
                f"counts of the items in {feature}: StatFeatures(sequences={{{feature!r}: (...)}}), or ItemCounts"
            )
            raise ContractError("SID-Coord, statistics", expected, f"StatFeatures of {target} alone")
        return self.sequences.get(feature, self.names)

    @property
    def features(self) -> tuple[str, ...]:
        """Features of the batch that hold statistics."""
        return self.names

    def rows(self, items: int) -> Tensor:
        """Counts that are fixed per item: none, [items, 0]."""
        return torch.zeros(items, 0)

    def moments(self) -> tuple[Tensor, Tensor]:
        """mean_S and std_S as tensors."""
        mean_S = torch.tensor(self.mean_S or (0.0,) * len(self.names))
        return mean_S, torch.tensor(self.std_S or (1.0,) * len(self.names))


@dataclass(frozen=True)
class ItemCounts:
    """Fixed counts per item, taken before training began.

    Counts of the training log itself would leak how often an item is shown later.

    counts_IS: [I, S], or [I] for one statistic; row i is item id i. Items beyond it have counts of 0.

    Raises ContractError for another shape, and for counts below 0 or not finite.
    """

    counts_IS: Tensor

    def __post_init__(self) -> None:
        counts = self.counts_IS.detach().float()
        counts = counts.unsqueeze(1) if counts.dim() == 1 else counts
        if counts.dim() != 2 or not counts.numel():
            raise ContractError("ItemCounts", "counts [items, statistics]", f"shape {tuple(self.counts_IS.shape)}")
        bad_ISx2 = (~torch.isfinite(counts) | (counts < 0)).nonzero()
        if len(bad_ISx2):
            item, statistic = bad_ISx2[0].tolist()
            where = f"ItemCounts, item {item}, statistic {statistic}"
            raise ContractError(where, "a finite count of at least 0", float(counts[item, statistic]))
        object.__setattr__(self, "counts_IS", counts)

    @property
    def features(self) -> tuple[str, ...]:
        """Features of the batch that hold statistics: none."""
        return ()

    def of(self, feature: str, target: str) -> tuple[str, ...]:
        """Features with a count for each id of `feature`: none."""
        return ()

    def rows(self, items: int) -> Tensor:
        """Counts of the ids below `items`: [items, S]."""
        counts_IS = self.counts_IS.new_zeros(items, self.counts_IS.shape[1])
        known = min(items, len(self.counts_IS))
        counts_IS[:known] = self.counts_IS[:known]
        return counts_IS

    def moments(self) -> tuple[Tensor, Tensor]:
        """Moments of log1p(count), [S] each; the weight of an item is its first count plus one."""
        weight_I1 = self.counts_IS[:, :1] + 1
        weight_I1 = weight_I1 / weight_I1.sum()
        log_IS = torch.log1p(self.counts_IS)
        mean_S = (weight_I1 * log_IS).sum(dim=0)
        return mean_S, (weight_I1 * (log_IS - mean_S).square()).sum(dim=0).sqrt()


Statistics = StatFeatures | ItemCounts
"""Counts as of each row, or as of the start of training."""
