"""Items as hashed ids and what a network makes of their content vectors.

Shapes as in `sidrec.model.items.representation`; H hidden.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.config.item import ContentItem
from sidrec.config.pooling import Pooling
from sidrec.data.item_tables import HID
from sidrec.model.history import index_history
from sidrec.model.items.representation import ItemLookup, ItemRepresentation
from sidrec.model.pooling import build_pooling


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
