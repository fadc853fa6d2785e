"""Items as hashed and semantic ids, coordinated (SID-Coord, arXiv 2604.10471).

Shapes as in `sidrec.model.items.representation`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sidrec.config.item import SidCoordItem
from sidrec.config.pooling import Pooling
from sidrec.data.item_tables import HID
from sidrec.model.gate import build_gate
from sidrec.model.history import index_history
from sidrec.model.items.representation import ItemLookup
from sidrec.model.items.semantic import SemanticPart, SemanticRepresentation
from sidrec.model.pooling import PooledHistories
from sidrec.model.sizes import Sizes


class SidCoordRepresentation(SemanticRepresentation):
    """SID-Coord (arXiv 2604.10471): gated HID and SID of the target, the host's history, and the alignment features."""

    def __init__(self, config: SidCoordItem, pooling: Pooling, dim: int, sizes: Sizes) -> None:
        super().__init__()
        self.features = ("item", *(f"history_{name}" for name in config.history))
        self.semantic = SemanticPart(config, dim, sizes.sid_features)
        self.gate = build_gate(config.gate, dim, torch.tensor(sizes.stats_mean), torch.tensor(sizes.stats_std))
        self.pooling = PooledHistories(config.history, pooling, dim)
        self.width = self.semantic.width

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_UD, sid_UD = items.embedded[HID], self.semantic.embed(items)
        hid_BD, sid_BD = functional.embedding(target_B, hid_UD), functional.embedding(target_B, sid_UD)
        target_BD = self.gate(hid_BD, sid_BD, stats_BS)
        history = index_history(history_BT)
        pooled = self.pooling({"hid": (hid_UD, hid_BD), "sid": (sid_UD, sid_BD)}, history)
        return torch.stack([target_BD, *pooled], dim=1), self.semantic.dense(sid_UD, items, target_B, history)
