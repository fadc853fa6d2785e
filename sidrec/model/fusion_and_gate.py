"""Fusion: an item's SID embeddings become one vector e_sid. Gate: e_hid and e_sid of the target become one vector e.

SID-Coord's modules I and II (arXiv 2604.10471), and their alternatives. To add one: add its
section to sidrec/config/item_parts.py, and here its module and its case in `build_fusion` or `build_gate`.

Shapes: B rows, U items, G granularities, D width, H hidden width, S statistics.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from sidrec.config.item_parts import (
    AdditiveFusion,
    BucketizedStats,
    ConcatMlpFusion,
    ConcatProjectFusion,
    CountedFusion,
    Fusion,
    Gate,
    HidQueryFusion,
    MeanFusion,
    MeanGate,
    QueryFusion,
    ShrinkageGate,
    StandardizedStats,
    Stats,
    StatsGate,
    SumFusion,
    SumGate,
)
from sidrec.model.fused import GATE
from sidrec.model.regions import is_traced

CONSTANT = 1e-6  # a standard deviation below it is rounding

# Fusion: e_sid of the G embeddings of an item's SID.


def build_fusion(
    config: Fusion, granularities: int, dim: int, impressions: Mapping[str, Tensor] | None = None
) -> "GranularityFusion | Sum | ConcatProject":
    """The module of the recipe's section.

    impressions: granularity -> train impressions of each row of its table, [R, 1]; for the kind counted.
    """
    match config:
        case AdditiveFusion():
            return AdditiveAttention(granularities, dim, config.hidden)
        case CountedFusion():
            assert impressions is not None, "counted by callers"
            return CountedAttention(config, dim, impressions)
        case HidQueryFusion():
            return HidQueryAttention(config, granularities, dim)
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


class GranularityFusion(nn.Module):
    """e_sid = sum_k alpha_k e_k, alpha = softmax(scores). Base class; subclasses define the scores.

    Scores depend on the item alone, so e_sid can be cached and compared by cosine.

    rows_UG: number of each granule among its granularity's, 0 for none; hid_UD: e_hid. Most kinds need neither.
    """

    watcher: "Watcher | None" = None

    @contextmanager
    def watch(self, watcher: "Watcher") -> Iterator[None]:
        """Inside, `watcher` is called with the arguments of `weights` for every batch that is fused."""
        hook = self.register_forward_pre_hook(lambda _, inputs: None if is_traced(inputs[0]) else watcher(*inputs))
        self.watcher = watcher
        try:
            yield
        finally:
            self.watcher = None
            hook.remove()

    def scores(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        """Unnormalised attention [U, G]."""
        raise NotImplementedError

    def weights(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        """alpha [U, G]; rows sum to one."""
        return torch.softmax(self.scores(granules_UGD, rows_UG, hid_UD), dim=1)

    def forward(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        """Returns e_sid [U, D]."""
        return (self.weights(granules_UGD, rows_UG, hid_UD).unsqueeze(2) * granules_UGD).sum(dim=1)

    def region_weights(self) -> tuple[Tensor, ...]:
        """The region's inputs after the granules; empty for kinds without a region."""
        return ()


Watcher = Callable[..., None]


class AdditiveAttention(GranularityFusion):
    """Scores v . tanh(W e_k + b_k): W is shared, each granularity has a bias b_k (SID-Coord, module I)."""

    def __init__(self, granularities: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, hidden, bias=False)
        self.bias_GH = nn.Parameter(torch.zeros(granularities, hidden))
        self.score = nn.Linear(hidden, 1, bias=False)

    def scores(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        return self.score(torch.tanh(self.project(granules_UGD) + self.bias_GH)).squeeze(2)

    def region_weights(self) -> tuple[Tensor, ...]:
        return self.project.weight, self.bias_GH, self.score.weight


class CountedAttention(AdditiveAttention):
    """Adds a_k log(m / (m + kappa)), m = n_k + 1, to the scores of AdditiveAttention; n_k: impressions of the granule.

    impressions: granularity -> [R, 1], a buffer each, so that checkpoints hold them. Rows beyond R have none.
    """

    def __init__(self, config: CountedFusion, dim: int, impressions: Mapping[str, Tensor]) -> None:
        super().__init__(len(impressions), dim, config.hidden)
        self.names = tuple(impressions)
        for name, impressions_R1 in impressions.items():
            self.register_buffer(IMPRESSIONS + name, impressions_R1)
        self.factor_G = nn.Parameter(torch.ones(len(impressions)), requires_grad=config.learned)
        self.log_strength = nn.Parameter(torch.tensor(math.log(config.strength)), requires_grad=config.learned)

    def counts(self, rows_UG: Tensor) -> Tensor:
        """n_k, [U, G]."""
        columns = [getattr(self, IMPRESSIONS + name) for name in self.names]
        return torch.cat([_count(column_R1, rows_UG[:, k]) for k, column_R1 in enumerate(columns)], dim=1)

    def scores(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        assert rows_UG is not None, "batches hold granule numbers where a fusion needs counts"
        shown_UG = self.counts(rows_UG) + 1
        confidence_UG = torch.log(shown_UG / (shown_UG + self.log_strength.exp()))
        return super().scores(granules_UGD) + self.factor_G * confidence_UG

    def region_weights(self) -> tuple[Tensor, ...]:
        return ()


@fx.wrap  # fx cannot trace a length
def _count(impressions_R1: Tensor, rows_U: Tensor) -> Tensor:
    return impressions_R1.index_select(0, torch.where(rows_U < len(impressions_R1), rows_U, 0))


IMPRESSIONS = "impressions_"
"""Prefix of CountedAttention's buffers, before the granularity's name."""


class HidQueryAttention(GranularityFusion):
    """Scores q_k . e_k / sqrt(D) with q_1 = h, q_k = MLP_k([e_(k-1); h]) and h = W e_hid (IntRR, arXiv 2602.20704).

    IntRR assigns codes of whole codebooks in this way; here the item's own granules are weighed [I]. In training h is
    zero for a share of the items.
    """

    def __init__(self, config: HidQueryFusion, granularities: int, dim: int) -> None:
        super().__init__()
        self.guide = nn.Linear(dim, dim, bias=False)
        self.queries = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * dim, config.hidden), nn.ReLU(), nn.Linear(config.hidden, dim))
            for _ in range(granularities - 1)
        )
        self.detach_hid, self.dropout = config.detach_hid, config.hid_dropout
        self.scale = 1 / math.sqrt(dim)

    def scores(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        assert hid_UD is not None, "item kinds with HIDs pass them on"
        guide_UD = self.guide(hid_UD.detach() if self.detach_hid else hid_UD)
        if self.training and self.dropout:
            guide_UD = guide_UD * (torch.rand_like(guide_UD[:, :1]) >= self.dropout)
        queries = [guide_UD]
        for level, mlp in enumerate(self.queries):
            queries.append(mlp(torch.cat([granules_UGD[:, level], guide_UD], dim=1)))
        return (torch.stack(queries, dim=1) * granules_UGD).sum(dim=2) * self.scale


class QueryAttention(GranularityFusion):
    """Scores q . W e_k / sqrt(D) with one learned query q."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim, bias=False)
        self.query_D = nn.Parameter(torch.randn(dim) / math.sqrt(dim))
        self.scale = 1 / math.sqrt(dim)

    def scores(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        return torch.matmul(self.project(granules_UGD), self.query_D) * self.scale


class ConcatMlpAttention(GranularityFusion):
    """Scores MLP([e_1; ...; e_G])."""

    def __init__(self, granularities: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(1), nn.Linear(granularities * dim, hidden), nn.ReLU(), nn.Linear(hidden, granularities)
        )

    def scores(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        return self.mlp(granules_UGD)


class MeanAttention(GranularityFusion):
    """Equal weights: the control that attention must beat."""

    def scores(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        return torch.zeros_like(granules_UGD[:, :, 0])

    def forward(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        return granules_UGD.mean(dim=1)


class Sum(nn.Module):
    """e_sid = sum_k e_k."""

    def forward(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        """Returns e_sid [U, D]."""
        return granules_UGD.sum(dim=1)


class ConcatProject(nn.Module):
    """e_sid = W [e_1; ...; e_G], without a bias, so that padding stays zero."""

    def __init__(self, granularities: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(granularities * dim, dim, bias=False)

    def forward(self, granules_UGD: Tensor, rows_UG: Tensor | None = None, hid_UD: Tensor | None = None) -> Tensor:
        """Returns e_sid [U, D]."""
        return self.project(granules_UGD.flatten(1))


# Gate: e of e_hid and e_sid.

INITIAL_LENGTH = 0.3
"""Initial root mean square of e_hid and e_sid with `lengths: equal`."""

EPSILON = 1e-6
"""Added to the mean square, so that untrained rows, which are near zero, stay short."""


def build_gate(config: Gate, dim: int, mean_S: Tensor, std_S: Tensor) -> "HidSidGate":
    """The module of the recipe's section. mean_S, std_S: moments of log1p(count), for the statistics."""
    match config:
        case StatsGate():
            return TargetAwareGate(config, dim, mean_S, std_S)
        case ShrinkageGate():
            return Shrinkage(config)
        case SumGate():
            return PlainSum(1.0)
        case MeanGate():
            return PlainSum(0.5)


class HidSidGate(nn.Module):
    """Base class."""

    def forward(
        self,
        hid_BD: Tensor,
        sid_BD: Tensor,
        stats_BS: Tensor,
        has_sid_B: Tensor | None = None,
        updates_B: Tensor | None = None,
        regions: str = "none",
    ) -> Tensor:
        """Returns e [B, D]: the mix of e_hid and e_sid; the HID alone for an item without a SID.

        stats_BS: raw counts. has_sid_B: bool; None if all items have a SID. updates_B: updates that the HID's row has
        received, for gates that need them. regions: as in `Paths`.
        """
        weights = self.region_weights() if regions != "none" else ()
        if weights and has_sid_B is not None:
            return GATE(regions, hid_BD, sid_BD, has_sid_B, stats_BS, *weights)[0]
        hid_BD, sid_BD = self.scaled(hid_BD), self.scaled(sid_BD)
        mixed_BD = self.mixed(hid_BD, sid_BD, stats_BS, updates_B)
        return mixed_BD if has_sid_B is None else torch.where(has_sid_B.unsqueeze(1), mixed_BD, hid_BD)

    def region_weights(self) -> tuple[Tensor, ...]:
        """The region's inputs after those that have rows; empty for gates without a region."""
        return ()

    def scaled(self, embedded_BD: Tensor) -> Tensor:
        """e_hid or e_sid as the gate takes it."""
        return embedded_BD

    def mixed(self, hid_BD: Tensor, sid_BD: Tensor, stats_BS: Tensor, updates_B: Tensor | None) -> Tensor:
        """e [B, D] of items with a SID. hid_BD, sid_BD: scaled."""
        raise NotImplementedError


class WeighingGate(HidSidGate):
    """Base class of gates with a weight g of the HID that differs between items."""

    def value(self, stats_BS: Tensor, updates_B: Tensor | None = None) -> Tensor:
        """g [B, 1], or [B, D] with one value per dimension."""
        raise NotImplementedError


class TargetAwareGate(WeighingGate):
    """e = g * e_hid + (1 - g) * e_sid, g = sigmoid(MLP(stats)) (SID-Coord, module II).

    Popular items can rely on their HID, rare ones on their SID. Options that are not in the paper [I]:

    form residual: e = e_sid + g * e_hid.
    lengths equal: e_hid and e_sid are first scaled to one learned root mean square, so that g sets their shares alone.
    start hid_only: 1 - g = open * (1 - sigmoid(MLP(stats))), with a learned scalar `open` that starts at 0. `open` is
        unbounded, as its gradient would otherwise vanish at 0; so g can leave (0, 1).
    updates: log(1 + n) of the updates n that the HID's row has received is a further input of the MLP.
    """

    def __init__(self, config: StatsGate, dim: int, mean_S: Tensor, std_S: Tensor) -> None:
        super().__init__()
        self.statistics = build_statistics(config.stats, mean_S, std_S)
        self.residual = config.form == "residual"
        self.length = nn.Parameter(torch.tensor(INITIAL_LENGTH)) if config.lengths == "equal" else None
        self.open = nn.Parameter(torch.zeros(())) if config.start == "hid_only" else None
        output = nn.Linear(config.hidden, dim if config.per_dimension else 1)
        nn.init.constant_(output.bias, config.output_bias)
        plain = (config.form, config.lengths, config.start) == ("mix", "as_is", "balanced")
        self.has_region = plain and not (config.per_dimension or config.updates)
        self.updates = config.updates
        self.mlp = nn.Sequential(nn.Linear(self.statistics.width + self.updates, config.hidden), nn.ReLU(), output)

    def value(self, stats_BS: Tensor, updates_B: Tensor | None = None) -> Tensor:
        """g [B, 1], or [B, D] with one value per dimension; in (0, 1) unless start is hid_only."""
        inputs = self.statistics(stats_BS)
        if self.updates:
            assert updates_B is not None, "the ranker counts updates where the gate needs them"
            inputs = torch.cat([inputs, torch.log1p(updates_B).unsqueeze(1)], dim=1)
        logit = self.mlp(inputs)
        return torch.sigmoid(logit) if self.open is None else 1 - self.open * torch.sigmoid(-logit)

    def region_weights(self) -> tuple[Tensor, ...]:
        if not self.has_region or not isinstance(self.statistics, StandardizeStats):
            return ()
        return self.statistics.mean_S, self.statistics.std_S, *self.mlp.parameters()

    def scaled(self, embedded_BD: Tensor) -> Tensor:
        return embedded_BD if self.length is None else self.length * _unit(embedded_BD)

    def mixed(self, hid_BD: Tensor, sid_BD: Tensor, stats_BS: Tensor, updates_B: Tensor | None) -> Tensor:
        gate = self.value(stats_BS, updates_B)
        return sid_BD + gate * hid_BD if self.residual else torch.lerp(sid_BD, hid_BD, gate)


def _unit(embedded_BD: Tensor) -> Tensor:
    """Scales rows to a root mean square of 1; zeros stay zeros."""
    return embedded_BD * torch.rsqrt(embedded_BD.square().mean(dim=1, keepdim=True) + EPSILON)


class Shrinkage(WeighingGate):
    """e = e_sid + g * e_hid, g = n / (n + k), n updates of the HID's row.

    log(k) is learned: k is a scale, and a step of the optimizer changes it by a share of itself.
    """

    def __init__(self, config: ShrinkageGate) -> None:
        super().__init__()
        log_k = torch.tensor(math.log(config.strength))
        self.log_k = nn.Parameter(log_k, requires_grad=config.learned)

    def value(self, stats_BS: Tensor, updates_B: Tensor | None = None) -> Tensor:
        """g [B, 1] in [0, 1)."""
        assert updates_B is not None, "the ranker counts updates where the gate needs them"
        return (updates_B / (updates_B + self.log_k.exp())).unsqueeze(1)

    def mixed(self, hid_BD: Tensor, sid_BD: Tensor, stats_BS: Tensor, updates_B: Tensor | None) -> Tensor:
        return torch.addcmul(sid_BD, self.value(stats_BS, updates_B), hid_BD)


class PlainSum(HidSidGate):
    """e = weight * (e_hid + e_sid): the ablation without a gate."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def mixed(self, hid_BD: Tensor, sid_BD: Tensor, stats_BS: Tensor, updates_B: Tensor | None) -> Tensor:
        return self.weight * (hid_BD + sid_BD)


# The target's exposure statistics as input of a gate: counts in, scaled features out.


def build_statistics(config: Stats, mean_S: Tensor, std_S: Tensor) -> "StandardizeStats | BucketizeStats":
    """The module of the recipe's section."""
    match config:
        case StandardizedStats():
            return StandardizeStats(mean_S, std_S)
        case BucketizedStats():
            return BucketizeStats(len(mean_S), config.buckets, config.width)


class StandardizeStats(nn.Module):
    """log1p of each count, minus the mean, over the standard deviation, both of the train split.

    mean_S, std_S: moments of log1p(count) over training rows; buffers, so that checkpoints hold them. A count that is
    the same in all training rows is not scaled: a later log, in which it is not, would get inputs in the hundreds.
    """

    mean_S: Tensor
    std_S: Tensor

    def __init__(self, mean_S: Tensor, std_S: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_S", mean_S.float())
        std_S = std_S.float()
        self.register_buffer("std_S", torch.where(std_S < CONSTANT, 1.0, std_S.clamp_min(1e-3)))
        self.width = len(mean_S)

    def forward(self, stats_BS: Tensor) -> Tensor:
        """Raw counts [B, S] to features [B, S]."""
        return (torch.log1p(stats_BS) - self.mean_S) / self.std_S


class BucketizeStats(nn.Module):
    """The embedding of each count's power-of-two bucket; each statistic has its own buckets."""

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
