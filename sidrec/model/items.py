"""Item representations: from the embeddings of a batch's unique items to the features that the backbone gets.

One class per item kind of the recipe. SidCoordRepresentation is SID-Coord (arXiv 2604.10471); the others are
baselines and rivals (GateSID is in gate_sid.py).

Shapes: B rows, U items, T history positions, G SID features, W weighted and V content columns of an item, F features,
D width, S statistics, E dense features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.config.item import ContentItem, HidAndSidItem, HidItem, SidCoordItem, SidItem
from sidrec.config.model import Pooling
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import HID
from sidrec.model.alignment import Alignment
from sidrec.model.contrast import CodeGuidedContrast
from sidrec.model.fusion_and_gate import GranularityFusion, WeighingGate, build_gate
from sidrec.model.history import targets_among
from sidrec.model.pooling import PooledHistories, build_pooling
from sidrec.model.semantic_part import (
    ItemLookup,
    SemanticPart,
    granule_impressions,
    hids_dropped,
    sids_dropped,
    zero_where,
)


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
    def weighing_gate(self) -> WeighingGate | None:
        """The gate between HID and SID, where there is one whose weight differs between items."""
        return None

    @property
    def alignment(self) -> Alignment | None:
        """The alignment of target and history, where there is one."""
        return None


# SID-Coord, and what kinds with SIDs share.


class SemanticRepresentation(ItemRepresentation):
    """Base class of item kinds with SIDs."""

    semantic: SemanticPart

    @property
    def sids(self) -> tuple[str, ...]:
        return self.semantic.sids

    @property
    def attention(self) -> GranularityFusion | None:
        return self.semantic.fusion if isinstance(self.semantic.fusion, GranularityFusion) else None

    @property
    def alignment(self) -> Alignment | None:
        return self.semantic.alignment


class HidsAndSids(SemanticRepresentation):
    """Base class of kinds with both: e_hid and e_sid of the target, dropout, pooled histories, dense features."""

    pooling: PooledHistories

    def __init__(self, config: SidCoordItem | HidAndSidItem, dim: int, sizes: Sizes) -> None:
        super().__init__()
        self.semantic = SemanticPart(config, dim, sizes.sid_features, granule_impressions(config, sizes))
        self.contrast = CodeGuidedContrast(config.contrast, sizes.rows_per_lane) if config.contrast else None
        self.same_sid = config.contrast is not None and config.contrast.same_sid
        self.width = self.semantic.width
        self.hid_rates, self.sid_rate = (config.hid_dropout, config.hid_dropout_history), config.sid_dropout

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_UD, sid_UD = items.embedded[HID], self.semantic.embed(items)
        no_hid_B, no_hids_B = (hids_dropped(items, rate) for rate in self.hid_rates)
        no_sid_B = sids_dropped(items, self.sid_rate)
        hid_BD, hid_UD = targets_among(hid_UD, target_B, items.paths)
        sid_BD, sid_UD = targets_among(sid_UD, target_B, items.paths)
        hid_BD, sid_BD = zero_where(no_hid_B, hid_BD), zero_where(no_sid_B, sid_BD)
        history = items.index(history_BT)
        with_sids = items.with_sids(history)
        pooled = self.pooling({"hid": (hid_UD, hid_BD, history), "sid": (sid_UD, sid_BD, with_sids)})
        if "hid" in self.pooling:
            place = list(self.pooling).index("hid")
            pooled[place] = zero_where(no_hids_B, pooled[place])
        has_sid_B = items.has_sid(target_B)
        has_sid_B = has_sid_B if no_sid_B is None else has_sid_B & ~no_sid_B
        updates_B = None
        if items.updates_U is not None:
            updates_B = items.updates_U.index_select(0, target_B)
            updates_B = updates_B if no_hid_B is None else updates_B.masked_fill(no_hid_B, 0.0)
        target = self.target(hid_BD, sid_BD, has_sid_B, stats_BS, updates_B, items.regions)
        dense_BE = self.semantic.dense(sid_UD, items, target_B, with_sids, no_sid_B)
        return torch.stack([*target, *pooled], dim=1), dense_BE

    def target(
        self,
        hid_BD: Tensor,
        sid_BD: Tensor,
        has_sid_B: Tensor,
        stats_BS: Tensor,
        updates_B: Tensor | None,
        regions: str,
    ) -> list[Tensor]:
        """The target's features, [B, D] each. regions: as in `Paths`."""
        raise NotImplementedError

    def losses(self, items: ItemLookup, target_B: Tensor, stats_BS: Tensor) -> dict[str, Tensor]:
        """`contrast`: aligns HIDs and SIDs of the targets, where the recipe has it. Dropout has no say in it."""
        if self.contrast is None:
            return {}
        hid_BD = functional.embedding(target_B, items.embedded[HID])
        sid_BD = functional.embedding(target_B, self.semantic.embed(items))
        bag_B = target_B * items.has_sid(target_B)  # a target without a SID is as padding
        granules_BG = None
        if self.same_sid:
            assert items.granules_UG is not None, "batches hold granule numbers where the loss needs them"
            granules_BG = items.granules_UG.index_select(0, target_B)
        return {"contrast": self.contrast(hid_BD, sid_BD, bag_B, granules_BG, stats_BS)}


VIEWS = {"mixed": "item", "hid": "item_hid", "sid": "item_sid"}
"""View of the recipe -> name of the feature."""


class SidCoordRepresentation(HidsAndSids):
    """SID-Coord (arXiv 2604.10471).

    e_sid = fusion of the SID features (module I), e = gate(e_hid, e_sid, statistics) for the target (module II), the
    history pooled as configured, and alignment features as dense features (module III). `views` names the target's
    features: e, e_hid, e_sid.
    """

    def __init__(self, config: SidCoordItem, pooling: Pooling, dim: int, sizes: Sizes) -> None:
        super().__init__(config, dim, sizes)
        self.views = config.views
        self.features = (*(VIEWS[name] for name in config.views), *(f"history_{name}" for name in config.history))
        mean_S, std_S = torch.tensor(sizes.stats_mean), torch.tensor(sizes.stats_std)
        self.gate = build_gate(config.gate, dim, mean_S, std_S) if "mixed" in config.views else None
        self.pooling = PooledHistories(config.history, pooling, dim)

    @property
    def weighing_gate(self) -> WeighingGate | None:
        return self.gate if isinstance(self.gate, WeighingGate) else None

    def target(
        self,
        hid_BD: Tensor,
        sid_BD: Tensor,
        has_sid_B: Tensor,
        stats_BS: Tensor,
        updates_B: Tensor | None,
        regions: str,
    ) -> list[Tensor]:
        parts = {"hid": hid_BD, "sid": sid_BD}
        if self.gate is not None:
            parts["mixed"] = self.gate(hid_BD, sid_BD, stats_BS, has_sid_B, updates_B, regions)
        return [parts[name] for name in self.views]


# HIDs alone, SIDs alone, both side by side, and dense content.


class HidRepresentation(ItemRepresentation):
    """Hashed ids alone: e_hid of the target, and of the history, pooled. The baseline."""

    features = ("item", "history_hid")
    width = 0

    def __init__(self, config: HidItem, pooling: Pooling, dim: int) -> None:
        super().__init__()
        self.pooling = build_pooling(pooling, dim)
        self.rate, self.history_rate = config.hid_dropout, config.hid_dropout_history

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        target_BD, hid_UD = targets_among(items.embedded[HID], target_B, items.paths)
        target_BD = zero_where(hids_dropped(items, self.rate), target_BD)
        pooled_BD = self.pooling(hid_UD, target_BD, items.index(history_BT))
        pooled_BD = zero_where(hids_dropped(items, self.history_rate), pooled_BD)
        return torch.stack([target_BD, pooled_BD], dim=1), stats_BS[:, :0]


class SidRepresentation(SemanticRepresentation):
    """Semantic ids alone: e_sid of the target, and of the history, pooled; and the alignment features."""

    def __init__(self, config: SidItem, pooling: Pooling, dim: int, sizes: Sizes) -> None:
        super().__init__()
        self.features = ("item", "history_sid")
        self.semantic = SemanticPart(config, dim, sizes.sid_features, granule_impressions(config, sizes))
        self.pooling = build_pooling(pooling, dim)
        self.width = self.semantic.width

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        target_BD, sid_UD = targets_among(self.semantic.embed(items), target_B, items.paths)
        history = items.with_sids(items.index(history_BT))
        embedded = torch.stack([target_BD, self.pooling(sid_UD, target_BD, history)], dim=1)
        return embedded, self.semantic.dense(sid_UD, items, target_B, history)


class HidAndSidRepresentation(HidsAndSids):
    """e_hid and e_sid of the target as two features, the history pooled in each, and the alignment features."""

    def __init__(self, config: HidAndSidItem, pooling: Pooling, dim: int, sizes: Sizes) -> None:
        super().__init__(config, dim, sizes)
        self.features = ("item", "item_sid", *(f"history_{name}" for name in config.history))
        self.pooling = PooledHistories(config.history, pooling, dim)

    def target(
        self,
        hid_BD: Tensor,
        sid_BD: Tensor,
        has_sid_B: Tensor,
        stats_BS: Tensor,
        updates_B: Tensor | None,
        regions: str,
    ) -> list[Tensor]:
        return [hid_BD, sid_BD]


class ContentRepresentation(ItemRepresentation):
    """e_hid and the projected content vector of the target as two features, and the history pooled in each."""

    features = ("item", "item_content", "history_hid", "history_content")
    width = 0

    def __init__(self, config: ContentItem, pooling: Pooling, dim: int, content: int) -> None:
        """content: width V of a content vector."""
        super().__init__()
        self.project = nn.Sequential(nn.Linear(content, config.hidden), nn.ReLU(), nn.Linear(config.hidden, dim))
        self.hid_pooling, self.content_pooling = build_pooling(pooling, dim), build_pooling(pooling, dim)
        self.rate, self.history_rate = config.hid_dropout, config.hid_dropout_history

    def embed(self, items: ItemLookup) -> Tensor:
        """The projected content [U, D]; zero for padding and items without content."""
        if "content" not in items.computed:
            assert items.content_UV is not None, "the ranker passes on the batch's content"
            known_U1 = items.content_UV.any(dim=1, keepdim=True)
            items.computed["content"] = self.project(items.content_UV) * known_U1
        return items.computed["content"]

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_BD, hid_UD = targets_among(items.embedded[HID], target_B, items.paths)
        content_BD, content_UD = targets_among(self.embed(items), target_B, items.paths)
        hid_BD = zero_where(hids_dropped(items, self.rate), hid_BD)
        history = items.index(history_BT)
        hids_BD = zero_where(hids_dropped(items, self.history_rate), self.hid_pooling(hid_UD, hid_BD, history))
        contents_BD = self.content_pooling(content_UD, content_BD, history)
        return torch.stack([hid_BD, content_BD, hids_BD, contents_BD], dim=1), stats_BS[:, :0]
