"""SID-driven interest alignment: how alike are the target and the user's history, level-free and in SID space
(SID-Coord, arXiv 2604.10471, module III); or, as its rival, how many granules they share.

Shapes: B rows, U items, T history positions, D width, H soft buckets, A width of a meta-embedding, G granularities.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.config.alignment import (
    Alignment,
    AutoDisAlignment,
    HistogramAlignment,
    MatchStatsAlignment,
    NoAlignment,
    RawStatsAlignment,
)
from sidrec.model.autodis import autodis_max_and_mean
from sidrec.model.history import HistoryIndex, products_with_history


def similarities(sid_UD: Tensor, target_B: Tensor, history: HistoryIndex) -> Tensor:
    """S_t = cos(e_sid(target), e_sid(history item t)), [B, T]; 0 at padding, whose vector is zero.

    Rows are scaled to unit length once per unique item, before they are gathered.
    """
    unit_UD = functional.normalize(sid_UD, dim=1, eps=1e-6)
    return products_with_history(unit_UD, functional.embedding(target_B, unit_UD), history)


def masked_max_and_mean(values_BTA: Tensor, valid_BT: Tensor) -> Tensor:
    """[max_t; mean_t] over valid positions, [B, 2A]; zeros where no position is valid."""
    valid_BT1 = valid_BT.unsqueeze(2)
    count_B1 = valid_BT.sum(dim=1, keepdim=True)
    highest_BA = values_BTA.masked_fill(~valid_BT1, -torch.inf).amax(dim=1).masked_fill(count_B1 == 0, 0.0)
    mean_BA = (values_BTA * valid_BT1).sum(dim=1) / count_B1.clamp_min(1)
    return torch.cat([highest_BA, mean_BA], dim=1)


class SimilarityFeatures(nn.Module):
    """Turns similarities into features. `width` is their number; `forward` maps [B, T] and its mask to [B, width]."""

    width: int

    def forward(self, similarity_BT: Tensor, valid_BT: Tensor) -> Tensor:
        raise NotImplementedError


class AutoDis(SimilarityFeatures):
    """AutoDis (arXiv 2012.08986) of each similarity, then max and mean over the history.

    h = LeakyReLU(w x), u = W h + skip * h, p = softmax(u / temperature), a = p ME.
    As x is a scalar, LeakyReLU(w x) = |x| LeakyReLU(sign(x) w): u is |x| times one of two vectors, so the H x H product
    is done twice per batch instead of once per position.
    """

    def __init__(self, buckets: int, width: int, skip: float, temperature: float) -> None:
        super().__init__()
        self.weight_H = nn.Parameter(torch.empty(buckets).uniform_(-1, 1))
        self.mix = nn.Linear(buckets, buckets, bias=False)
        self.meta_HA = nn.Parameter(torch.randn(buckets, width) * 0.1)
        self.skip = skip
        self.temperature = temperature
        self.width = 2 * width

    def forward(self, similarity_BT: Tensor, valid_BT: Tensor) -> Tensor:
        h_2H = functional.leaky_relu(torch.stack([self.weight_H, -self.weight_H]))
        slope_2H = (self.mix(h_2H) + self.skip * h_2H) / self.temperature
        return autodis_max_and_mean(similarity_BT, valid_BT, slope_2H, self.meta_HA)


class Histogram(SimilarityFeatures):
    """Fixed Gaussian bins on [-1, 1], then max and mean over the history."""

    centers_H: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.register_buffer("centers_H", torch.linspace(-1, 1, bins), persistent=False)
        self.inverse_width = bins / 2
        self.width = 2 * bins

    def forward(self, similarity_BT: Tensor, valid_BT: Tensor) -> Tensor:
        distance_BTH = (similarity_BT.unsqueeze(2) - self.centers_H) * self.inverse_width
        return masked_max_and_mean(torch.exp(-0.5 * distance_BTH.square()), valid_BT)


class RawStatistics(SimilarityFeatures):
    """max, mean and standard deviation of the similarities."""

    width = 3

    def forward(self, similarity_BT: Tensor, valid_BT: Tensor) -> Tensor:
        pooled_B2 = masked_max_and_mean(similarity_BT.unsqueeze(2), valid_BT)
        centered_BT = (similarity_BT - pooled_B2[:, 1:]) * valid_BT
        variance_B1 = centered_BT.square().sum(dim=1, keepdim=True) / valid_BT.sum(dim=1, keepdim=True).clamp_min(1)
        return torch.cat([pooled_B2, torch.sqrt(variance_B1 + 1e-8)], dim=1)


class InterestAlignment(nn.Module):
    """Alignment features of a row: the pooled similarity features and an "empty history" bit."""

    def __init__(self, features: SimilarityFeatures, stop_gradient: bool) -> None:
        super().__init__()
        self.features = features
        self.stop_gradient = stop_gradient
        self.width = features.width + 1

    def forward(self, sid_UD: Tensor, target_B: Tensor, history: HistoryIndex) -> Tensor:
        """Returns [B, width]. target_B: item bags."""
        if self.stop_gradient:
            sid_UD = sid_UD.detach()
        pooled = self.features(similarities(sid_UD, target_B, history), history.valid_BT)
        empty_B1 = (~history.valid_BT.any(dim=1, keepdim=True)).to(pooled.dtype)
        return torch.cat([pooled, empty_B1], dim=1)


class MatchStatistics(nn.Module):
    """Per granularity, how many items of the history share the target's granule: log1p of the count, and its share of
    the history; and an "empty history" bit. The match statistics of SIDs that rankers take beside DAS's
    (arXiv 2508.10584)."""

    def __init__(self, granularities: int) -> None:
        super().__init__()
        self.granularities = granularities
        self.width = 2 * granularities + 1

    def forward(self, granules_UG: Tensor, target_B: Tensor, history: HistoryIndex) -> Tensor:
        """Returns [B, width]. granules_UG: the number of each bag's granule, 0 for none, which matches nothing."""
        target_BG = granules_UG.index_select(0, target_B)
        counts = []
        for k in range(self.granularities):
            wanted_B1, found_BT = target_BG[:, k : k + 1], granules_UG[:, k][history.bag_BT]
            counts.append(((found_BT == wanted_B1) & (wanted_B1 > 0)).sum(dim=1))
        count_BG = torch.stack(counts, dim=1).float()
        empty_B1 = (~history.valid_BT.any(dim=1, keepdim=True)).float()
        return torch.cat([torch.log1p(count_BG), count_BG / history.count_B1, empty_B1], dim=1)


def build_alignment(config: Alignment, granularities: int) -> InterestAlignment | MatchStatistics | None:
    """The module that `config` names; None for "none"."""
    match config:
        case AutoDisAlignment():
            features = AutoDis(config.buckets, config.width, config.skip, config.temperature)
            return InterestAlignment(features, config.stop_gradient)
        case HistogramAlignment():
            return InterestAlignment(Histogram(config.bins), config.stop_gradient)
        case RawStatsAlignment():
            return InterestAlignment(RawStatistics(), config.stop_gradient)
        case MatchStatsAlignment():
            return MatchStatistics(granularities)
        case NoAlignment():
            return None
