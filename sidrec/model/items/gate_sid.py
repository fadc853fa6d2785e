"""GateSID (arXiv 2603.22916): a gate decides whose attention scores the histories follow, and how near a target's HID
and SID are drawn.

Shapes as in `sidrec.model.items.representation`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.config.item import GateSidItem
from sidrec.data.item_tables import HID
from sidrec.model.contrast import contrast_within_lanes
from sidrec.model.history import (
    HistoryIndex,
    index_history,
    products_with_history,
    softmax_over_history,
    weighted_sum_of_history,
)
from sidrec.model.items.representation import ItemLookup
from sidrec.model.items.semantic import SemanticPart, SemanticRepresentation
from sidrec.model.sizes import Sizes
from sidrec.model.statistics import build_statistics


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
