"""Items as semantic ids alone.

Shapes as in `sidrec.model.items.representation`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sidrec.config.item import SidItem
from sidrec.config.pooling import Pooling
from sidrec.model.history import index_history
from sidrec.model.items.representation import ItemLookup
from sidrec.model.items.semantic import SemanticPart, SemanticRepresentation
from sidrec.model.pooling import build_pooling


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
