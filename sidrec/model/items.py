"""From the recipe's item section to the module that represents items."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from sidrec.config.item import (
    ContentItem,
    GateSidItem,
    HidAndSidItem,
    HidItem,
    Item,
    SemanticItem,
    SidCoordItem,
    SidItem,
)
from sidrec.config.model import Pooling
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import HID
from sidrec.model.alignment import build_alignment
from sidrec.model.fusion_and_gate import GranularityFusion, TargetAwareGate, build_fusion, build_gate, build_statistics
from sidrec.model.history import (
    HistoryIndex,
    PooledHistories,
    build_pooling,
    index_history,
    products_with_history,
    softmax_over_history,
    weighted_sum_of_history,
)
from sidrec.sid.losses.loss import info_nce, same_item

# The contract of item representations: from the lookups of unique items to what the backbone gets.
#
# Shapes: B rows, U items, T history positions, W weighted and G matched granularities, V width of a content vector, F
# features, D width, S statistics, E dense features.


@dataclass(frozen=True)
class ItemLookup:
    """embedded: item feature -> [U, D], of one split of the KeyedTensor: a slice's gradient would be as wide as all.

    token_weights_UW, granules_UG, content_UV: as the Batch has them; the last two for kinds that ask for them.
    """

    embedded: dict[str, Tensor]
    token_weights_UW: Tensor
    granules_UG: Tensor | None = None
    content_UV: Tensor | None = None


class ItemRepresentation(nn.Module):
    """features: names of the F vectors; those of pooled histories begin with history_. width: dense features E."""

    features: tuple[str, ...]
    width: int

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns embedding features [B, F, D] and dense features [B, E]."""
        raise NotImplementedError

    def losses(self, items: ItemLookup, target_B: Tensor, stats_BS: Tensor) -> dict[str, Tensor]:
        """Auxiliary losses to train with, by name: each row's share [B], times the loss's weight."""
        return {}

    @property
    def sids(self) -> tuple[str, ...]:
        """Names of the G SID features that are fused."""
        return ()

    @property
    def attention(self) -> GranularityFusion | None:
        """The attention over the SID features, where there is one."""
        return None

    @property
    def learned_gate(self) -> TargetAwareGate | None:
        """The gate between HID and SID, where there is one that learns."""
        return None


def build_item(config: Item, pooling: Pooling, dim: int, sizes: Sizes) -> ItemRepresentation:
    """The module that `config` names, its histories pooled as `pooling` says."""
    match config:
        case HidItem():
            return HidRepresentation(pooling, dim)
        case SidItem():
            return SidRepresentation(config, pooling, dim, sizes.sid_features)
        case HidAndSidItem():
            return HidAndSidRepresentation(config, pooling, dim, sizes.sid_features)
        case SidCoordItem():
            return SidCoordRepresentation(config, pooling, dim, sizes)
        case GateSidItem():
            return GateSidRepresentation(config, dim, sizes)
        case ContentItem():
            return ContentRepresentation(config, pooling, dim, sizes.content)


# Items as hashed ids alone: the twin that all others are compared with.
#
# Shapes as in `sidrec.model.items`.


class HidRepresentation(ItemRepresentation):
    """Hashed ids alone: the target's embedding and the history's, pooled."""

    features = ("item", "history_hid")
    width = 0

    def __init__(self, pooling: Pooling, dim: int) -> None:
        super().__init__()
        self.pooling = build_pooling(pooling, dim)

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_UD = items.embedded[HID]
        target_BD = functional.embedding(target_B, hid_UD)
        pooled_BD = self.pooling(hid_UD, target_BD, index_history(history_BT))
        return torch.stack([target_BD, pooled_BD], dim=1), stats_BS[:, :0]


# What all representations with semantic ids share: fused granularities, and dense features of target and history.
#
# Shapes as in `sidrec.model.items`; G granularities.


class SemanticPart(nn.Module):
    """What all item kinds with SIDs have in common: fused granularities, and dense features of target and history.

    sids: names of the G features that are looked up; left out, the config's granularities.
    multiply, append: uses of the catalog's token weights (ADC-SID, arXiv 2510.25622). width: of the dense features.
    """

    def __init__(self, config: SemanticItem, dim: int, sids: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.sids = config.granularities if sids is None else sids
        self.multiply = config.token_weights in ("multiply", "both")
        self.append = config.token_weights in ("append", "both")
        self.fusion = build_fusion(config.fusion, len(self.sids), dim)
        self.alignment = build_alignment(config.alignment, len(config.granularities))
        self.width = (self.alignment.width if self.alignment else 0) + self.append * len(config.granularities)

    def embed(self, items: ItemLookup) -> Tensor:
        """e_sid [U, D]."""
        granules_UGD = torch.stack([items.embedded[name] for name in self.sids], dim=1)
        if self.multiply:
            granules_UGD = granules_UGD * items.token_weights_UW.unsqueeze(2)
        return self.fusion(granules_UGD)

    def dense(self, sid_UD: Tensor, items: ItemLookup, target_B: Tensor, history: HistoryIndex) -> Tensor:
        """Alignment features and the target's token weights, as far as configured: [B, width]."""
        features = []
        if self.alignment is not None:
            compared = items.granules_UG if self.alignment.compares_granules else sid_UD
            assert compared is not None, "match statistics are for models whose batches have granules"
            features.append(self.alignment(compared, target_B, history))
        if self.append:
            features.append(functional.embedding(target_B, items.token_weights_UW))
        return torch.cat(features, dim=1) if features else target_B.to(sid_UD.dtype).unsqueeze(1)[:, :0]


class SemanticRepresentation(ItemRepresentation):
    """An item representation with SIDs in it."""

    semantic: SemanticPart

    @property
    def sids(self) -> tuple[str, ...]:
        return self.semantic.sids

    @property
    def attention(self) -> GranularityFusion | None:
        return self.semantic.fusion if isinstance(self.semantic.fusion, GranularityFusion) else None


# Items as semantic ids alone.
#
# Shapes as in `sidrec.model.items`.


class SidRepresentation(SemanticRepresentation):
    """Semantic ids alone: fused granularities, the history's, pooled, and the alignment features."""

    def __init__(self, config: SidItem, pooling: Pooling, dim: int, sids: tuple[str, ...]) -> None:
        super().__init__()
        self.features = ("item", "history_sid")
        self.semantic = SemanticPart(config, dim, sids)
        self.pooling = build_pooling(pooling, dim)
        self.width = self.semantic.width

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        sid_UD = self.semantic.embed(items)
        target_BD = functional.embedding(target_B, sid_UD)
        history = index_history(history_BT)
        embedded = torch.stack([target_BD, self.pooling(sid_UD, target_BD, history)], dim=1)
        return embedded, self.semantic.dense(sid_UD, items, target_B, history)


# Items as hashed and semantic ids, side by side.
#
# Shapes as in `sidrec.model.items`.


class HidAndSidRepresentation(SemanticRepresentation):
    """HID and SID of the target as two features, the histories pooled in each, and the alignment features."""

    def __init__(self, config: HidAndSidItem, pooling: Pooling, dim: int, sids: tuple[str, ...]) -> None:
        super().__init__()
        self.features = ("item", "item_sid", *(f"history_{name}" for name in config.history))
        self.semantic = SemanticPart(config, dim, sids)
        self.pooling = PooledHistories(config.history, pooling, dim)
        self.width = self.semantic.width

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_UD, sid_UD = items.embedded[HID], self.semantic.embed(items)
        hid_BD, sid_BD = functional.embedding(target_B, hid_UD), functional.embedding(target_B, sid_UD)
        history = index_history(history_BT)
        pooled = self.pooling({"hid": (hid_UD, hid_BD), "sid": (sid_UD, sid_BD)}, history)
        return torch.stack([hid_BD, sid_BD, *pooled], dim=1), self.semantic.dense(sid_UD, items, target_B, history)


# Items as hashed and semantic ids, coordinated (SID-Coord, arXiv 2604.10471).
#
# Shapes as in `sidrec.model.items`.


class SidCoordRepresentation(SemanticRepresentation):
    """SID-Coord (arXiv 2604.10471): gated HID and SID of the target, the host's history, and the alignment features."""

    def __init__(self, config: SidCoordItem, pooling: Pooling, dim: int, sizes: Sizes) -> None:
        super().__init__()
        self.features = ("item", *(f"history_{name}" for name in config.history))
        self.semantic = SemanticPart(config, dim, sizes.sid_features)
        self.gate = build_gate(config.gate, dim, torch.tensor(sizes.stats_mean), torch.tensor(sizes.stats_std))
        self.pooling = PooledHistories(config.history, pooling, dim)
        self.width = self.semantic.width

    @property
    def learned_gate(self) -> TargetAwareGate | None:
        return self.gate if isinstance(self.gate, TargetAwareGate) else None

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_UD, sid_UD = items.embedded[HID], self.semantic.embed(items)
        hid_BD, sid_BD = functional.embedding(target_B, hid_UD), functional.embedding(target_B, sid_UD)
        target_BD = self.gate(hid_BD, sid_BD, stats_BS)
        history = index_history(history_BT)
        pooled = self.pooling({"hid": (hid_UD, hid_BD), "sid": (sid_UD, sid_BD)}, history)
        return torch.stack([target_BD, *pooled], dim=1), self.semantic.dense(sid_UD, items, target_B, history)


# GateSID (arXiv 2603.22916): a gate decides whose attention scores the histories follow, and how near a target's HID
# and SID are drawn.
#
# Shapes as in `sidrec.model.items`.


class AttentionScores(nn.Module):
    """(W_q e) . (W_k h_t) / sqrt(D) of target e and history item h_t."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.scale = 1 / math.sqrt(dim)

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        """Scores [B, T]; 0 at padding."""
        return products_with_history(self.key(items_UD), self.query(target_BD), history) * self.scale


class GateSidRepresentation(SemanticRepresentation):
    """HID and SID of the target as two features, and both histories under the same attention:

    w = sigmoid(MLP([e_hid; stats])), S = w S_sid + (1 - w) S_hid, a = softmax(S), sum_t a_t h_t of HIDs and of SIDs.

    w multiplies the SID, contrary to SID-Coord's g. How S_sid and S_hid come about is not published in detail: scaled
    dot products here [I]. The choice of a history pooling does not apply, as attention is what this kind is about.
    """

    features = ("item", "item_sid", "history_hid", "history_sid")

    def __init__(self, config: GateSidItem, dim: int, sizes: Sizes) -> None:
        super().__init__()
        self.semantic = SemanticPart(config, dim, sizes.sid_features)
        self.statistics = build_statistics(config.stats, torch.tensor(sizes.stats_mean), torch.tensor(sizes.stats_std))
        self.mlp = nn.Sequential(
            nn.Linear(dim + self.statistics.width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1)
        )
        self.hid_scores, self.sid_scores = AttentionScores(dim), AttentionScores(dim)
        self.width = self.semantic.width
        self.contrastive, self.rows_per_lane = config.contrastive, sizes.rows_per_lane

    def sid_share(self, hid_BD: Tensor, stats_BS: Tensor) -> Tensor:
        """w [B, 1] in (0, 1)."""
        return torch.sigmoid(self.mlp(torch.cat([hid_BD, self.statistics(stats_BS)], dim=1)))

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_UD, sid_UD = items.embedded[HID], self.semantic.embed(items)
        hid_BD, sid_BD = functional.embedding(target_B, hid_UD), functional.embedding(target_B, sid_UD)
        history = index_history(history_BT)
        score_BT = torch.lerp(
            self.hid_scores(hid_UD, hid_BD, history),
            self.sid_scores(sid_UD, sid_BD, history),
            self.sid_share(hid_BD, stats_BS),
        )
        attention_BT = softmax_over_history(score_BT, history)
        pooled = [weighted_sum_of_history(items_UD, attention_BT, history) for items_UD in (hid_UD, sid_UD)]
        return torch.stack([hid_BD, sid_BD, *pooled], dim=1), self.semantic.dense(sid_UD, items, target_B, history)

    def losses(self, items: ItemLookup, target_B: Tensor, stats_BS: Tensor) -> dict[str, Tensor]:
        """weight * w * InfoNCE(e_sid, e_hid) of the targets, as `contrastive`, where that is configured."""
        if self.contrastive is None:
            return {}
        hid_BD = functional.embedding(target_B, items.embedded[HID])
        sid_BD = functional.embedding(target_B, self.semantic.embed(items))
        share_B = self.sid_share(hid_BD, stats_BS).squeeze(1)
        if not self.contrastive.teaches_gate:
            share_B = share_B.detach()
        contrast_B = contrast_within_lanes(sid_BD, hid_BD, target_B, self.rows_per_lane, self.contrastive.temperature)
        return {"contrastive": self.contrastive.weight * share_B * contrast_B}


# Items as hashed ids and what a network makes of their content vectors.
#
# Shapes as in `sidrec.model.items`; H hidden.


class ContentRepresentation(ItemRepresentation):
    """HID and projected content of the target as two features, and the histories pooled in each."""

    features = ("item", "item_content", "history_hid", "history_content")
    width = 0

    def __init__(self, config: ContentItem, pooling: Pooling, dim: int, content: int) -> None:
        """content: width V of a content vector."""
        super().__init__()
        self.project = nn.Sequential(nn.Linear(content, config.hidden), nn.ReLU(), nn.Linear(config.hidden, dim))
        self.hid_pooling, self.content_pooling = build_pooling(pooling, dim), build_pooling(pooling, dim)

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert items.content_UV is not None, "the ranker hands on what the batch has"
        hid_UD = items.embedded[HID]
        known_U1 = items.content_UV.any(dim=1, keepdim=True)  # padding and items without content stay zero
        content_UD = self.project(items.content_UV) * known_U1
        hid_BD, content_BD = functional.embedding(target_B, hid_UD), functional.embedding(target_B, content_UD)
        history = index_history(history_BT)
        pooled = [self.hid_pooling(hid_UD, hid_BD, history), self.content_pooling(content_UD, content_BD, history)]
        return torch.stack([hid_BD, content_BD, *pooled], dim=1), stats_BS[:, :0]


# Contrast of two embeddings of an item, each row's negatives among the other rows of its lane.
#
# Which rows a rank holds depends on the number of ranks, which rows a lane gives to a step does not: negatives from one
# lane alone make the loss the same at any number of ranks.
#
# Shapes: B rows, lanes end to end; D width.


def contrast_within_lanes(
    anchor_BD: Tensor, target_BD: Tensor, bag_B: Tensor, rows_per_lane: int, temperature: float
) -> Tensor:
    """InfoNCE by cosine of every row's anchor to its own target, [B]; 0 for padding.

    bag_B: the rows' items. Padding (0) and further rows of the anchor's item are no negatives. rows_per_lane: each
    lane has as many, padding included.
    """
    return _contrast(anchor_BD, target_BD, bag_B, rows_per_lane, temperature)


@fx.wrap  # the pipelines trace the ranker, and fx does not know how many lanes a batch has
def _contrast(anchor_BD: Tensor, target_BD: Tensor, bag_B: Tensor, rows_per_lane: int, temperature: float) -> Tensor:
    assert len(bag_B) % rows_per_lane == 0, "a batch holds whole lanes"
    lanes = zip(*(torch.split(rows, rows_per_lane) for rows in (anchor_BD, target_BD, bag_B)), strict=True)
    losses = [info_nce(anchor, target, temperature, same_item(bag) | (bag == 0)) for anchor, target, bag in lanes]
    return torch.cat(losses).masked_fill(bag_B == 0, 0.0)
