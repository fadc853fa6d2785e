"""Item representations: what the ranker sees of target and history, from the tables of the unique items.

Every representation maps (the lookups of U item bags, target, history, statistics) to embedding features [B, F, D] and
further dense features [B, E]; `tables`, `features` and `width` say which tables it reads and what it gives.

Shapes: B rows, U items, T history positions, G granularities, W weighted granularities, D width, S statistics.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.config.model import HidItem, Item, SidCoordItem, SidItem
from sidrec.data.item_tables import HID
from sidrec.model.alignment import build_alignment
from sidrec.model.fusion import build_fusion
from sidrec.model.gate import build_gate
from sidrec.model.history import HistoryIndex, index_history, mean_of_history


@dataclass(frozen=True)
class ItemLookup:
    """tables: table -> [U, D], of one split of the KeyedTensor: a slice's gradient would be as wide as all tables.

    token_weights_UW: weights of the granularities, W = 0 where none are used.
    """

    tables: dict[str, Tensor]
    token_weights_UW: Tensor


class ItemRepresentation(nn.Module):
    """tables: names of the tables it reads. features: names of the F vectors. width: number of dense features E."""

    tables: tuple[str, ...]
    features: tuple[str, ...]
    width: int

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns embedding features [B, F, D] and dense features [B, E]."""
        raise NotImplementedError


class HidRepresentation(ItemRepresentation):
    """Hashed ids alone: the target's embedding and the mean of the history's."""

    tables = (HID,)
    features = ("item", "history_hid")
    width = 0

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_UD = items.tables[HID]
        target_BD = functional.embedding(target_B, hid_UD)
        embedded = torch.stack([target_BD, mean_of_history(hid_UD, index_history(history_BT))], dim=1)
        return embedded, stats_BS[:, :0]


class SemanticPart(nn.Module):
    """What SID items and SID-Coord have in common: fused granularities, and dense features of target and history.

    multiply, append: uses of the catalog's token weights (ADC-SID, arXiv 2510.25622). width: of the dense features.
    """

    def __init__(self, config: SidItem | SidCoordItem, dim: int) -> None:
        super().__init__()
        self.granularities = config.granularities
        self.multiply = config.token_weights in ("multiply", "both")
        self.append = config.token_weights in ("append", "both")
        self.fusion = build_fusion(config.fusion, len(config.granularities), dim)
        self.alignment = build_alignment(config.alignment)
        self.width = (self.alignment.width if self.alignment else 0) + self.append * len(config.granularities)

    def embed(self, items: ItemLookup) -> Tensor:
        """e_sid [U, D]."""
        granules_UGD = torch.stack([items.tables[name] for name in self.granularities], dim=1)
        if self.multiply:
            granules_UGD = granules_UGD * items.token_weights_UW.unsqueeze(2)
        return self.fusion(granules_UGD)

    def dense(self, sid_UD: Tensor, items: ItemLookup, target_B: Tensor, history: HistoryIndex) -> Tensor:
        """Alignment features and the target's token weights, as far as configured: [B, width]."""
        features = [self.alignment(sid_UD, target_B, history)] if self.alignment else []
        if self.append:
            features.append(functional.embedding(target_B, items.token_weights_UW))
        return torch.cat(features, dim=1) if features else target_B.to(sid_UD.dtype).unsqueeze(1)[:, :0]


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


def build_item(config: Item, dim: int, mean_S: Tensor, std_S: Tensor) -> ItemRepresentation:
    """The module that `config` names. mean_S, std_S: moments of log1p(statistics) over the train split."""
    match config:
        case HidItem():
            return HidRepresentation()
        case SidItem():
            return SidRepresentation(config, dim)
        case SidCoordItem():
            return SidCoordRepresentation(config, dim, mean_S, std_S)
