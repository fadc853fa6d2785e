"""The target's exposure statistics as model input: counts in, well-scaled features out.

Shapes: B rows, S statistics.
"""

import torch
from torch import Tensor, nn

from sidrec.config.gate import BucketizedStats, StandardizedStats, Stats


class StandardizeStats(nn.Module):
    """log1p of each count, minus the mean, over the standard deviation, both of the train split.

    mean_S, std_S: moments of log1p(count) over training rows; kept as buffers, so that a checkpoint carries them.
    """

    mean_S: Tensor
    std_S: Tensor

    def __init__(self, mean_S: Tensor, std_S: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_S", mean_S.float())
        self.register_buffer("std_S", std_S.float().clamp_min(1e-3))
        self.width = len(mean_S)

    def forward(self, stats_BS: Tensor) -> Tensor:
        """Raw counts [B, S] to features [B, S]."""
        return (torch.log1p(stats_BS) - self.mean_S) / self.std_S


class BucketizeStats(nn.Module):
    """The power-of-two bucket of each count, embedded; statistics have tables of their own."""

    first_S: Tensor

    def __init__(self, stats: int, buckets: int, width: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(stats * buckets, width)
        self.register_buffer("first_S", torch.arange(stats) * buckets, persistent=False)
        self.last = buckets - 1
        self.width = stats * width

    def forward(self, stats_BS: Tensor) -> Tensor:
        """Raw counts [B, S] to features [B, S * width]."""
        bucket_BS = torch.ceil(torch.log2(stats_BS + 1)).long().clamp(0, self.last)
        return self.embeddings(bucket_BS + self.first_S).flatten(1)


def build_statistics(config: Stats, mean_S: Tensor, std_S: Tensor) -> StandardizeStats | BucketizeStats:
    """The module that `config` names."""
    match config:
        case StandardizedStats():
            return StandardizeStats(mean_S, std_S)
        case BucketizedStats():
            return BucketizeStats(len(mean_S), config.buckets, config.width)
