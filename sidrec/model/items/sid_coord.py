"""Items as hashed and semantic ids, coordinated (SID-Coord, arXiv 2604.10471).

Shapes as in `sidrec.model.items.representation`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sidrec.config.item import SidCoordItem
from sidrec.data.item_tables import HID
from sidrec.model.gate import build_gate
from sidrec.model.history import index_history, mean_of_history
from sidrec.model.items.representation import ItemLookup, ItemRepresentation
from sidrec.model.items.semantic import SemanticPart


class SidCoordRepresentation(ItemRepresentation):
    """SID-Coord (arXiv 2604.10471): gated HID and SID of the target, the host's history, and the alignment features."""

    def __init__(self, config: SidCoordItem, dim: int, mean_S: Tensor, std_S: Tensor) -> None:
        super().__init__()
        self.tables = (HID, *config.granularities)
        self.history = config.history
        self.features = ("item", *(f"history_{name}" for name in config.history))
        self.semantic = SemanticPart(config, dim)
        self.gate = build_gate(config.gate, dim, mean_S, std_S)
        self.width = self.semantic.width

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_UD, sid_UD = items.tables[HID], self.semantic.embed(items)
        target_BD = self.gate(functional.embedding(target_B, hid_UD), functional.embedding(target_B, sid_UD), stats_BS)
        history = index_history(history_BT)
        pooled = [mean_of_history(hid_UD if name == "hid" else sid_UD, history) for name in self.history]
        return torch.stack([target_BD, *pooled], dim=1), self.semantic.dense(sid_UD, items, target_B, history)
