"""Items as semantic ids alone.

Shapes as in `sidrec.model.items.representation`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sidrec.config.item import SidItem
from sidrec.model.history import index_history, mean_of_history
from sidrec.model.items.representation import ItemLookup, ItemRepresentation
from sidrec.model.items.semantic import SemanticPart


class SidRepresentation(ItemRepresentation):
    """Semantic ids alone: fused granularities, the mean of the history's, and the alignment features."""

    def __init__(self, config: SidItem, dim: int) -> None:
        super().__init__()
        self.tables = config.granularities
        self.features = ("item", "history_sid")
        self.semantic = SemanticPart(config, dim)
        self.width = self.semantic.width

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        sid_UD = self.semantic.embed(items)
        history = index_history(history_BT)
        embedded = torch.stack([functional.embedding(target_B, sid_UD), mean_of_history(sid_UD, history)], dim=1)
        return embedded, self.semantic.dense(sid_UD, items, target_B, history)
