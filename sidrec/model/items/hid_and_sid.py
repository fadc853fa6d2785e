"""Items as hashed and semantic ids, side by side.

Shapes as in `sidrec.model.items.representation`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sidrec.config.item import HidAndSidItem
from sidrec.config.pooling import Pooling
from sidrec.data.item_tables import HID
from sidrec.model.history import index_history
from sidrec.model.items.representation import ItemLookup
from sidrec.model.items.semantic import SemanticPart, SemanticRepresentation
from sidrec.model.pooling import PooledHistories


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
