"""Items as hashed and semantic ids, coordinated (SID-Coord, arXiv 2604.10471).

Shapes as in `sidrec.model.items.representation`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.config.item import SidCoordItem
from sidrec.config.pooling import Pooling
from sidrec.data.item_tables import HID
from sidrec.model.gate import build_gate
from sidrec.model.history import index_history
from sidrec.model.items.representation import ItemLookup, ItemRepresentation
from sidrec.model.items.semantic import SemanticPart
from sidrec.model.pooling import build_pooling


class SidCoordRepresentation(ItemRepresentation):
    """SID-Coord (arXiv 2604.10471): gated HID and SID of the target, the host's history, and the alignment features."""

    def __init__(self, config: SidCoordItem, pooling: Pooling, dim: int, mean_S: Tensor, std_S: Tensor) -> None:
        super().__init__()
        self.tables = (HID, *config.granularities)
        self.features = ("item", *(f"history_{name}" for name in config.history))
        self.semantic = SemanticPart(config, dim)
        self.gate = build_gate(config.gate, dim, mean_S, std_S)
        self.pooling = nn.ModuleDict({name: build_pooling(pooling, dim) for name in config.history})
        self.width = self.semantic.width

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_UD, sid_UD = items.tables[HID], self.semantic.embed(items)
        hid_BD, sid_BD = functional.embedding(target_B, hid_UD), functional.embedding(target_B, sid_UD)
        spaces = {"hid": (hid_UD, hid_BD), "sid": (sid_UD, sid_BD)}
        history = index_history(history_BT)
        pooled = [pooling(*spaces[name], history) for name, pooling in self.pooling.items()]
        embedded_BFD = torch.stack([self.gate(hid_BD, sid_BD, stats_BS), *pooled], dim=1)
        return embedded_BFD, self.semantic.dense(sid_UD, items, target_B, history)
