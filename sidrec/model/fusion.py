"""From the G embeddings of an item's SID to one e_sid: by attention (SID-Coord, arXiv 2604.10471, module I), or by what
its rivals do.

Shapes: U items, G granularities, D width, H hidden.
"""

import math

import torch
from torch import Tensor, nn

from sidrec.config.item import (
    AdditiveFusion,
    ConcatMlpFusion,
    ConcatProjectFusion,
    Fusion,
    MeanFusion,
    QueryFusion,
    SumFusion,
)


class GranularityFusion(nn.Module):
    """e_sid = sum_k alpha_k e_k with alpha = softmax of `scores`. Subclasses say how scores come about.

    Every scorer sees the item alone, so e_sid is a function of the item: comparable by cosine and cacheable.
    """

    def scores(self, granules_UGD: Tensor) -> Tensor:
        """Unnormalised attention [U, G]."""
        raise NotImplementedError

    def weights(self, granules_UGD: Tensor) -> Tensor:
        """alpha [U, G]; rows sum to one."""
        return torch.softmax(self.scores(granules_UGD), dim=1)

    def forward(self, granules_UGD: Tensor) -> Tensor:
        """Returns e_sid [U, D]."""
        return (self.weights(granules_UGD).unsqueeze(2) * granules_UGD).sum(dim=1)


class AdditiveAttention(GranularityFusion):
    """u_k = v . tanh(W e_k + b_k): W shared, one bias per granularity."""

    def __init__(self, granularities: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, hidden, bias=False)
        self.bias_GH = nn.Parameter(torch.zeros(granularities, hidden))
        self.score = nn.Linear(hidden, 1, bias=False)

    def scores(self, granules_UGD: Tensor) -> Tensor:
        return self.score(torch.tanh(self.project(granules_UGD) + self.bias_GH)).squeeze(2)


class QueryAttention(GranularityFusion):
    """u_k = q . W e_k / sqrt(D) with one learned query."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim, bias=False)
        self.query_D = nn.Parameter(torch.randn(dim) / math.sqrt(dim))
        self.scale = 1 / math.sqrt(dim)

    def scores(self, granules_UGD: Tensor) -> Tensor:
        return torch.matmul(self.project(granules_UGD), self.query_D) * self.scale


class ConcatMlpAttention(GranularityFusion):
    """u = MLP([e_1; ...; e_G])."""

    def __init__(self, granularities: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(1), nn.Linear(granularities * dim, hidden), nn.ReLU(), nn.Linear(hidden, granularities)
        )

    def scores(self, granules_UGD: Tensor) -> Tensor:
        return self.mlp(granules_UGD)


class MeanAttention(GranularityFusion):
    """The same weight for all: the control."""

    def scores(self, granules_UGD: Tensor) -> Tensor:
        return torch.zeros_like(granules_UGD[:, :, 0])

    def forward(self, granules_UGD: Tensor) -> Tensor:
        return granules_UGD.mean(dim=1)


class Sum(nn.Module):
    """e_sid = sum_k e_k."""

    def forward(self, granules_UGD: Tensor) -> Tensor:
        """Returns e_sid [U, D]."""
        return granules_UGD.sum(dim=1)


class ConcatProject(nn.Module):
    """e_sid = W [e_1; ...; e_G], without a bias: padding stays zero."""

    def __init__(self, granularities: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(granularities * dim, dim, bias=False)

    def forward(self, granules_UGD: Tensor) -> Tensor:
        """Returns e_sid [U, D]."""
        return self.project(granules_UGD.flatten(1))


def build_fusion(config: Fusion, granularities: int, dim: int) -> GranularityFusion | Sum | ConcatProject:
    """The module that `config` names."""
    match config:
        case AdditiveFusion():
            return AdditiveAttention(granularities, dim, config.hidden)
        case QueryFusion():
            return QueryAttention(dim)
        case ConcatMlpFusion():
            return ConcatMlpAttention(granularities, dim, config.hidden)
        case MeanFusion():
            return MeanAttention()
        case SumFusion():
            return Sum()
        case ConcatProjectFusion():
            return ConcatProject(granularities, dim)
