"""Item representations: what the ranker sees of target and history, from the tables of the unique items.

Every representation maps (KeyedTensor of U item bags, target, history, statistics) to embedding features [B, F, D] and
further dense features [B, E]; `tables`, `features` and `width` say which tables it reads and what it gives.

Shapes: B rows, U items, T history positions, G granularities, D width, S statistics.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedTensor

from sidrec.config.model import HidItem, Item, SidCoordItem, SidItem
from sidrec.data.item_tables import HID
from sidrec.model.alignment import build_alignment
from sidrec.model.fusion import build_fusion
from sidrec.model.gate import build_gate
from sidrec.model.history import index_history, mean_of_history


class ItemRepresentation(nn.Module):
    """tables: names of the tables it reads. features: names of the F vectors. width: number of dense features E."""

    tables: tuple[str, ...]
    features: tuple[str, ...]
    width: int

    def forward(
        self, items: KeyedTensor, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns embedding features [B, F, D] and dense features [B, E]."""
        raise NotImplementedError


class HidRepresentation(ItemRepresentation):
    """Hashed ids alone: the target's embedding and the mean of the history's."""

    tables = (HID,)
    features = ("item", "history_hid")
    width = 0

    def forward(
        self, items: KeyedTensor, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_UD = items.to_dict()[HID]
        target_BD = functional.embedding(target_B, hid_UD)
        embedded = torch.stack([target_BD, mean_of_history(hid_UD, index_history(history_BT))], dim=1)
        return embedded, stats_BS[:, :0]


class SidRepresentation(ItemRepresentation):
    """Semantic ids alone: fused granularities, the mean of the history's, and the alignment features."""

    def __init__(self, config: SidItem, dim: int) -> None:
        super().__init__()
        self.tables = config.granularities
        self.features = ("item", "history_sid")
        self.fusion = build_fusion(config.fusion, len(config.granularities), dim)
        self.alignment = build_alignment(config.alignment)
        self.width = self.alignment.width if self.alignment else 0

    def forward(
        self, items: KeyedTensor, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        tables = items.to_dict()
        sid_UD = self.fusion(torch.stack([tables[name] for name in self.tables], dim=1))
        target_BD = functional.embedding(target_B, sid_UD)
        history = index_history(history_BT)
        embedded = torch.stack([target_BD, mean_of_history(sid_UD, history)], dim=1)
        aligned = self.alignment(sid_UD, target_B, history) if self.alignment else stats_BS[:, :0]
        return embedded, aligned


class SidCoordRepresentation(ItemRepresentation):
    """SID-Coord (arXiv 2604.10471): gated HID and SID of the target, the host's history, and the alignment features."""

    def __init__(self, config: SidCoordItem, dim: int, mean_S: Tensor, std_S: Tensor) -> None:
        super().__init__()
        self.granularities = config.granularities
        self.tables = (HID, *config.granularities)
        self.history = config.history
        self.features = ("item", *(f"history_{name}" for name in config.history))
        self.fusion = build_fusion(config.fusion, len(config.granularities), dim)
        self.gate = build_gate(config.gate, dim, mean_S, std_S)
        self.alignment = build_alignment(config.alignment)
        self.width = self.alignment.width if self.alignment else 0

    def forward(
        self, items: KeyedTensor, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        tables = items.to_dict()  # one split: items[name] slices, and each slice's gradient is as wide as all tables
        hid_UD = tables[HID]
        sid_UD = self.fusion(torch.stack([tables[name] for name in self.granularities], dim=1))
        target_BD = self.gate(functional.embedding(target_B, hid_UD), functional.embedding(target_B, sid_UD), stats_BS)
        history = index_history(history_BT)
        pooled = [mean_of_history(hid_UD if name == "hid" else sid_UD, history) for name in self.history]
        aligned = self.alignment(sid_UD, target_B, history) if self.alignment else stats_BS[:, :0]
        return torch.stack([target_BD, *pooled], dim=1), aligned


def build_item(config: Item, dim: int, mean_S: Tensor, std_S: Tensor) -> ItemRepresentation:
    """The module that `config` names. mean_S, std_S: moments of log1p(statistics) over the train split."""
    match config:
        case HidItem():
            return HidRepresentation()
        case SidItem():
            return SidRepresentation(config, dim)
        case SidCoordItem():
            return SidCoordRepresentation(config, dim, mean_S, std_S)
