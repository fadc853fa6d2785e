"""SID-driven interest alignment: how similar the target is to the user's history, in the space of SIDs.

SID-Coord's module III (arXiv 2604.10471): S_t = cos(e_sid(target), e_sid(history item t)), AutoDis of each S_t, and
[max_t; mean_t] of the result. Also its rivals: fixed bins, plain statistics, and counts of shared granules.

To add one: add its section to sidrec/config/item_parts.py, and here a `SimilarityFeatures` or an `Alignment` and its
case in `build_alignment`.

Shapes: B rows, U items, T history positions, D width, H soft buckets, A width of a meta-embedding, G granularities.
"""

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from sidrec.config import item_parts as sections
from sidrec.config.item_parts import (
    AutoDisAlignment,
    HistogramAlignment,
    MatchStatsAlignment,
    NoAlignment,
    RawStatsAlignment,
)
from sidrec.model.autodis import (
    autodis_max_and_mean,
    interpolated_max_and_mean,
    masked_max_and_mean,
    nearest_max_and_mean,
)
from sidrec.model.fused import AUTODIS, AUTODIS_ON_GRID, SHORTEST, autodis_grid, autodis_slopes, interpolated
from sidrec.model.history import HistoryIndex, Paths, products_with_targets


class Alignment(nn.Module):
    """Maps target and history to `width` dense features of the row. Base class.

    Items without a SID are not compared: their positions are not valid, and no position is for such a target.

    compares_granules: whether `forward` takes granules_UG, the number of each bag's granule at every granularity, in
    place of sid_UD. compares_units: whether it reads e_sid scaled to unit length.
    """

    width: int
    compares_granules = False
    compares_units = False

    def forward(self, items: Tensor, target_B: Tensor, history: HistoryIndex, unit_UD: Tensor | None = None) -> Tensor:
        """Returns [B, width]. items: sid_UD or granules_UG. target_B: item bags. unit_UD: sid_UD, scaled to unit
        length; None to scale it here."""
        raise NotImplementedError


def build_alignment(config: sections.Alignment, granularities: int) -> Alignment | None:
    """The module of the recipe's section; None for kind none."""
    match config:
        case AutoDisAlignment():
            features = AutoDis(config.buckets, config.width, config.skip, config.temperature, config.grid)
            return InterestAlignment(features, config.stop_gradient)
        case HistogramAlignment():
            return InterestAlignment(Histogram(config.bins), config.stop_gradient)
        case RawStatsAlignment():
            return InterestAlignment(RawStatistics(), config.stop_gradient)
        case MatchStatsAlignment():
            return MatchStatistics(granularities)
        case NoAlignment():
            return None


class InterestAlignment(Alignment):
    """[SimilarityFeatures(S); 1 if no position is valid else 0].

    stop_gradient: keeps the gradient of these features out of the SID tables.
    """

    compares_units = True

    def __init__(self, features: "SimilarityFeatures", stop_gradient: bool) -> None:
        super().__init__()
        self.features = features
        self.stop_gradient = stop_gradient
        self.width = features.width + 1

    def forward(self, sid_UD: Tensor, target_B: Tensor, history: HistoryIndex, unit_UD: Tensor | None = None) -> Tensor:
        """Returns [B, width]."""
        if self.stop_gradient:
            sid_UD, unit_UD = sid_UD.detach(), None if unit_UD is None else unit_UD.detach()
        return self.features.with_flag(similarities(sid_UD, target_B, history, unit_UD), history)


def similarities(sid_UD: Tensor, target_B: Tensor, history: HistoryIndex, unit_UD: Tensor | None = None) -> Tensor:
    """S_t = cos(e_sid(target), e_sid(history item t)), [B, T]; 0 at padding, whose vector is zero.

    Unique items are scaled to unit length, then gathered. unit_UD: as in `Alignment.forward`.
    """
    if unit_UD is None:
        unit_UD = functional.normalize(sid_UD, dim=1, eps=SHORTEST)
    return products_with_targets(unit_UD, target_B, history)


class SimilarityFeatures(nn.Module):
    """Maps similarities to `width` features of the row. Base class."""

    width: int

    def forward(self, similarity_BT: Tensor, valid_BT: Tensor, paths: Paths | None = None) -> Tensor:
        """Returns [B, width]; valid_BT is False at padding. paths: None for those of the tensors' device."""
        raise NotImplementedError

    def with_flag(self, similarity_BT: Tensor, history: HistoryIndex) -> Tensor:
        """`forward`, followed by 1 if no position is valid else 0: [B, width + 1]."""
        return _with_flag(self(similarity_BT, history.valid_BT, history.paths), history.valid_BT)


def _with_flag(pooled: Tensor, valid_BT: Tensor) -> Tensor:
    empty_B1 = (~valid_BT.any(dim=1, keepdim=True)).to(pooled.dtype)
    return torch.cat([pooled, empty_B1.expand(pooled.shape[0], -1)], dim=1)


class AutoDis(SimilarityFeatures):
    """AutoDis (arXiv 2012.08986) of each similarity x, then max and mean over the history.

    h = LeakyReLU(w x), u = W h + skip * h, p = softmax(u / temperature), a = p ME; H soft buckets, ME [H, A].
    As x is a scalar, LeakyReLU(w x) = |x| LeakyReLU(sign(x) w): u is |x| times one of two vectors, so the H x H product
    is computed twice per batch instead of once per position.

    grid: a is computed at that many intervals' ends on [-1, 1], and interpolated between them; None: at each x.
    """

    def __init__(self, buckets: int, width: int, skip: float, temperature: float, grid: int | None = None) -> None:
        super().__init__()
        self.weight_H = nn.Parameter(torch.empty(buckets).uniform_(-1, 1))
        self.mix = nn.Linear(buckets, buckets, bias=False)
        self.meta_HA = nn.Parameter(torch.randn(buckets, width) * 0.1)
        self.skip = skip
        self.temperature = temperature
        self.grid = grid
        self.width = 2 * width

    def forward(self, similarity_BT: Tensor, valid_BT: Tensor, paths: Paths | None = None) -> Tensor:
        return _autodis(similarity_BT, valid_BT, self._parameters_of_values(), self._options(), paths)

    def with_flag(self, similarity_BT: Tensor, history: HistoryIndex) -> Tensor:
        return _autodis_with_flag(similarity_BT, history, self._parameters_of_values(), self._options())

    def _parameters_of_values(self) -> list[Tensor]:
        return [self.weight_H, self.mix.weight, self.meta_HA]

    def _options(self) -> list[float]:
        return [self.skip, self.temperature, *([] if self.grid is None else [self.grid])]


def _autodis(
    similarity_BT: Tensor, valid_BT: Tensor, parameters: list[Tensor], options: list[float], paths: Paths | None
) -> Tensor:
    (weight_H, mix_HH, meta_HA), (skip, temperature, *grid) = parameters, options
    slope_2H = autodis_slopes(weight_H, mix_HH, skip, temperature)
    if paths is not None and paths.knots:
        values_MA = autodis_grid(slope_2H, meta_HA, int(grid[0]) if grid else paths.knots)
        if grid:
            x_1M = torch.linspace(-1, 1, paths.knots + 1, dtype=values_MA.dtype, device=values_MA.device).unsqueeze(0)
            values_MA = interpolated(x_1M, values_MA).squeeze(0)
        return nearest_max_and_mean(similarity_BT, valid_BT, values_MA, filled=paths.shared)
    if not grid:
        return autodis_max_and_mean(similarity_BT, valid_BT, slope_2H, meta_HA, paths)
    return interpolated_max_and_mean(similarity_BT, valid_BT, autodis_grid(slope_2H, meta_HA, int(grid[0])), paths)


@fx.wrap  # fx cannot trace a choice by the history's paths
def _autodis_with_flag(
    similarity_BT: Tensor, history: HistoryIndex, parameters: list[Tensor], options: list[float]
) -> Tensor:
    regions, valid_BT = history.paths.regions, history.valid_BT
    if regions == "none":
        return _with_flag(_autodis(similarity_BT, valid_BT, parameters, options, history.paths), valid_BT)
    region = AUTODIS if len(options) == 2 else AUTODIS_ON_GRID
    return region(regions, similarity_BT, valid_BT, *parameters, options=options)[0]


class Histogram(SimilarityFeatures):
    """exp(-((x - c) bins / 2)^2 / 2) for `bins` centers c spread over [-1, 1], then max and mean over the history."""

    centers_H: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.register_buffer("centers_H", torch.linspace(-1, 1, bins), persistent=False)
        self.inverse_width = bins / 2
        self.width = 2 * bins

    def forward(self, similarity_BT: Tensor, valid_BT: Tensor, paths: Paths | None = None) -> Tensor:
        distance_BTH = (similarity_BT.unsqueeze(2) - self.centers_H) * self.inverse_width
        return masked_max_and_mean(torch.exp(-0.5 * distance_BTH.square()), valid_BT)


class RawStatistics(SimilarityFeatures):
    """max, mean and standard deviation of the similarities."""

    width = 3

    def forward(self, similarity_BT: Tensor, valid_BT: Tensor, paths: Paths | None = None) -> Tensor:
        pooled_B2 = masked_max_and_mean(similarity_BT.unsqueeze(2), valid_BT)
        centered_BT = (similarity_BT - pooled_B2[:, 1:]) * valid_BT
        variance_B1 = centered_BT.square().sum(dim=1, keepdim=True) / valid_BT.sum(dim=1, keepdim=True).clamp_min(1)
        return torch.cat([pooled_B2, torch.sqrt(variance_B1 + 1e-8)], dim=1)


class MatchStatistics(Alignment):
    """[log1p(n_k); n_k / |history|; 1 if no position is valid else 0], n_k = number of history items that share the
    target's granule at granularity k. The SID match statistics that rankers use with DAS (arXiv 2508.10584).
    """

    compares_granules = True

    def __init__(self, granularities: int) -> None:
        super().__init__()
        self.granularities = granularities
        self.width = 2 * granularities + 1

    def forward(
        self, granules_UG: Tensor, target_B: Tensor, history: HistoryIndex, unit_UD: Tensor | None = None
    ) -> Tensor:
        """Returns [B, width]. granules_UG: 0 for an item without a SID, which matches nothing."""
        target_BG = granules_UG.index_select(0, target_B)
        counts = []
        for k in range(self.granularities):
            wanted_B1, found_BT = target_BG[:, k : k + 1], granules_UG[:, k][history.bag_BT]
            counts.append(((found_BT == wanted_B1) & (wanted_B1 > 0)).sum(dim=1))
        count_BG = torch.stack(counts, dim=1).float()
        return _with_flag(torch.cat([torch.log1p(count_BG), count_BG / history.count_B1], dim=1), history.valid_BT)
