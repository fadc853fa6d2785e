"""GateSID (arXiv 2603.22916): HID and SID side by side, a gated attention over both histories, a contrastive loss.

Shapes: B rows, U items, T history positions, D width, S statistics.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.config.item import GateSidItem
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import HID
from sidrec.model.contrast import contrast_within_lanes
from sidrec.model.fusion_and_gate import build_statistics
from sidrec.model.history import (
    HistoryIndex,
    attention_among,
    products_with_history,
    softmax_over_history,
    weighted_sum_of_history,
)
from sidrec.model.items import SemanticRepresentation
from sidrec.model.semantic_part import ItemLookup, SemanticPart, granule_impressions


class GateSidRepresentation(SemanticRepresentation):
    """e_hid and e_sid of the target as two features, and one attention for both histories.

    w = sigmoid(MLP([e_hid; stats])), S = w S_sid + (1 - w) S_hid, a = softmax(S); pooled histories are sum_t a_t h_t,
    of e_hid and of e_sid.

    w is the weight of the SID; SID-Coord's g is the weight of the HID. The paper does not define S_sid and S_hid: here
    they are scaled dot products [I], and S = S_hid where target or history item has no SID. `model.history_pooling`
    does not apply.
    """

    features = ("item", "item_sid", "history_hid", "history_sid")

    def __init__(self, config: GateSidItem, dim: int, sizes: Sizes) -> None:
        super().__init__()
        self.semantic = SemanticPart(config, dim, sizes.sid_features, granule_impressions(config, sizes))
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
        history = items.index(history_BT)
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
