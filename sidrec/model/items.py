"""Item representations: from the embeddings of a batch's unique items to the features that the backbone gets.

One class per item kind of the recipe. SidCoordRepresentation is SID-Coord (arXiv 2604.10471); the others are
baselines and rivals.

Shapes: B rows, U items, T history positions, G SID features, W weighted and V content columns of an item, F features,
D width, S statistics, E dense features.
"""

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
    attention_among,
    build_pooling,
    index_history,
    products_with_history,
    softmax_over_history,
    weighted_sum_of_history,
)
from sidrec.sid.losses.loss import info_nce, same_item


@dataclass(frozen=True)
class ItemLookup:
    """What is looked up for the unique items of a batch.

    embedded: item feature -> [U, D]. All features are split from the KeyedTensor in one call: a slice of it would have
    a gradient as wide as the whole tensor. token_weights_UW, granules_UG, content_UV: as in Batch. has_sid_U: bool;
    None if all bags but bag 0 have a SID.
    """

    embedded: dict[str, Tensor]
    token_weights_UW: Tensor
    granules_UG: Tensor | None = None
    content_UV: Tensor | None = None
    has_sid_U: Tensor | None = None

    # An item without a SID has an e_sid of zero. Wherever SIDs are mixed in or compared, it is left out:

    def has_sid(self, bags: Tensor) -> Tensor:
        """Whether the item of each bag has a SID; False at padding."""
        if self.has_sid_U is None:
            return bags > 0
        return self.has_sid_U.index_select(0, bags.flatten()).view_as(bags)  # a third of the time of indexing

    def with_sids(self, history: HistoryIndex) -> HistoryIndex:
        """The history without its items that have no SID."""
        return history if self.has_sid_U is None else history.where(self.has_sid(history.bag_BT))


class ItemRepresentation(nn.Module):
    """Base class.

    features: names of the F vectors; names of pooled histories begin with `history_`. width: E.
    """

    features: tuple[str, ...]
    width: int

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns embedding features [B, F, D] and dense features [B, E].

        target_B, history_BT: item bags, 0 is padding. stats_BS: raw counts.
        """
        raise NotImplementedError

    def losses(self, items: ItemLookup, target_B: Tensor, stats_BS: Tensor) -> dict[str, Tensor]:
        """Auxiliary training losses by name: the weighted loss of each row, [B]."""
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
    """The module of the recipe's sections `model.item` and `model.history_pooling`."""
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


# SID-Coord, and the part that all kinds with SIDs share.


class SemanticPart(nn.Module):
    """Fuses an item's SID features to e_sid (SID-Coord, module I) and aligns target and history (module III).

    sids: names of the G features that are looked up; None for the config's granularities.
    multiply, append: uses of the catalog's token weights (ADC-SID, arXiv 2510.25622): scale the embeddings by them, or
    append the target's to the dense features. width: number of dense features.
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
        """Alignment features and the target's token weights, where the recipe has them: [B, width].

        history: that of `items.with_sids`.
        """
        features = []
        if self.alignment is not None:
            compared = items.granules_UG if self.alignment.compares_granules else sid_UD
            assert compared is not None, "batches have granules where the alignment needs them"
            comparable = history.where(history.valid_BT & items.has_sid(target_B).unsqueeze(1))
            features.append(self.alignment(compared, target_B, comparable))
        if self.append:
            features.append(functional.embedding(target_B, items.token_weights_UW))
        return torch.cat(features, dim=1) if features else target_B.to(sid_UD.dtype).unsqueeze(1)[:, :0]


class SemanticRepresentation(ItemRepresentation):
    """Base class of item kinds with SIDs."""

    semantic: SemanticPart

    @property
    def sids(self) -> tuple[str, ...]:
        return self.semantic.sids

    @property
    def attention(self) -> GranularityFusion | None:
        return self.semantic.fusion if isinstance(self.semantic.fusion, GranularityFusion) else None


class SidCoordRepresentation(SemanticRepresentation):
    """SID-Coord (arXiv 2604.10471).

    e_sid = fusion of the SID features (module I), e = gate(e_hid, e_sid, statistics) for the target (module II), the
    history pooled as configured, and alignment features as dense features (module III).
    """

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
        target_BD = self.gate(hid_BD, sid_BD, stats_BS, items.has_sid(target_B))
        history = index_history(history_BT)
        with_sids = items.with_sids(history)
        pooled = self.pooling({"hid": (hid_UD, hid_BD, history), "sid": (sid_UD, sid_BD, with_sids)})
        return torch.stack([target_BD, *pooled], dim=1), self.semantic.dense(sid_UD, items, target_B, with_sids)


# HIDs alone, SIDs alone, both side by side, and dense content.


class HidRepresentation(ItemRepresentation):
    """Hashed ids alone: e_hid of the target, and of the history, pooled. The baseline."""

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


class SidRepresentation(SemanticRepresentation):
    """Semantic ids alone: e_sid of the target, and of the history, pooled; and the alignment features."""

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
        history = items.with_sids(index_history(history_BT))
        embedded = torch.stack([target_BD, self.pooling(sid_UD, target_BD, history)], dim=1)
        return embedded, self.semantic.dense(sid_UD, items, target_B, history)


class HidAndSidRepresentation(SemanticRepresentation):
    """e_hid and e_sid of the target as two features, the history pooled in each, and the alignment features."""

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
        with_sids = items.with_sids(history)
        pooled = self.pooling({"hid": (hid_UD, hid_BD, history), "sid": (sid_UD, sid_BD, with_sids)})
        return torch.stack([hid_BD, sid_BD, *pooled], dim=1), self.semantic.dense(sid_UD, items, target_B, with_sids)


class ContentRepresentation(ItemRepresentation):
    """e_hid and the projected content vector of the target as two features, and the history pooled in each."""

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
        assert items.content_UV is not None, "the ranker passes on the batch's content"
        hid_UD = items.embedded[HID]
        known_U1 = items.content_UV.any(dim=1, keepdim=True)  # padding and items without content stay zero
        content_UD = self.project(items.content_UV) * known_U1
        hid_BD, content_BD = functional.embedding(target_B, hid_UD), functional.embedding(target_B, content_UD)
        history = index_history(history_BT)
        pooled = [self.hid_pooling(hid_UD, hid_BD, history), self.content_pooling(content_UD, content_BD, history)]
        return torch.stack([hid_BD, content_BD, *pooled], dim=1), stats_BS[:, :0]


# GateSID.


class GateSidRepresentation(SemanticRepresentation):
    """GateSID (arXiv 2603.22916): e_hid and e_sid of the target as two features, and one attention for both histories.

    w = sigmoid(MLP([e_hid; stats])), S = w S_sid + (1 - w) S_hid, a = softmax(S); pooled histories are sum_t a_t h_t,
    of e_hid and of e_sid.

    w is the weight of the SID; SID-Coord's g is the weight of the HID. The paper does not define S_sid and S_hid: here
    they are scaled dot products [I], and S = S_hid where target or history item has no SID. `model.history_pooling`
    does not apply.
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
        with_sids = items.with_sids(history)
        hid_score_BT = self.hid_scores(hid_UD, hid_BD, history)
        score_BT = torch.lerp(hid_score_BT, self.sid_scores(sid_UD, sid_BD, history), self.sid_share(hid_BD, stats_BS))
        score_BT = torch.where(with_sids.valid_BT & items.has_sid(target_B).unsqueeze(1), score_BT, hid_score_BT)
        attention_BT = softmax_over_history(score_BT, history)
        pooled = [
            weighted_sum_of_history(hid_UD, attention_BT, history),
            weighted_sum_of_history(sid_UD, attention_among(attention_BT, history, with_sids), with_sids),
        ]
        return torch.stack([hid_BD, sid_BD, *pooled], dim=1), self.semantic.dense(sid_UD, items, target_B, with_sids)

    def losses(self, items: ItemLookup, target_B: Tensor, stats_BS: Tensor) -> dict[str, Tensor]:
        """`contrastive`: weight * w * InfoNCE(e_sid, e_hid) of the targets (GRCA), where the recipe has it."""
        if self.contrastive is None:
            return {}
        hid_BD = functional.embedding(target_B, items.embedded[HID])
        sid_BD = functional.embedding(target_B, self.semantic.embed(items))
        share_B = self.sid_share(hid_BD, stats_BS).squeeze(1)
        if not self.contrastive.teaches_gate:
            share_B = share_B.detach()
        bag_B = target_B * items.has_sid(target_B)  # a target without a SID is as padding
        contrast_B = contrast_within_lanes(sid_BD, hid_BD, bag_B, self.rows_per_lane, self.contrastive.temperature)
        return {"contrastive": self.contrastive.weight * share_B * contrast_B}


class AttentionScores(nn.Module):
    """(W_q e) . (W_k h_t) / sqrt(D) for target e and history item h_t."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.scale = 1 / math.sqrt(dim)

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        """Scores [B, T]; 0 at padding."""
        return products_with_history(self.key(items_UD), self.query(target_BD), history) * self.scale


def contrast_within_lanes(
    anchor_BD: Tensor, target_BD: Tensor, bag_B: Tensor, rows_per_lane: int, temperature: float
) -> Tensor:
    """InfoNCE by cosine of every row's anchor to its own target, [B]; 0 at padding.

    Negatives are the other rows of the same lane. A lane gives the same rows to a step at any number of ranks, so the
    loss is the same too.

    bag_B: the rows' items, lanes end to end. Padding (0) and further rows of the anchor's item are not negatives.
    rows_per_lane: of every lane, padding included.
    """
    return _contrast(anchor_BD, target_BD, bag_B, rows_per_lane, temperature)


@fx.wrap  # fx cannot trace a loop over lanes
def _contrast(anchor_BD: Tensor, target_BD: Tensor, bag_B: Tensor, rows_per_lane: int, temperature: float) -> Tensor:
    assert len(bag_B) % rows_per_lane == 0, "a batch holds whole lanes"
    lanes = zip(*(torch.split(rows, rows_per_lane) for rows in (anchor_BD, target_BD, bag_B)), strict=True)
    losses = [info_nce(anchor, target, temperature, same_item(bag) | (bag == 0)) for anchor, target, bag in lanes]
    return torch.cat(losses).masked_fill(bag_B == 0, 0.0)
