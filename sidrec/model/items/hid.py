"""Items as hashed ids alone: the twin that all others are compared with.

Shapes as in `sidrec.model.items.representation`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sidrec.config.pooling import Pooling
from sidrec.data.item_tables import HID
from sidrec.model.history import index_history
from sidrec.model.items.representation import ItemLookup, ItemRepresentation
from sidrec.model.pooling import build_pooling


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
