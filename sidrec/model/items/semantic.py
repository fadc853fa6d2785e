"""What all representations with semantic ids share: fused granularities, and dense features of target and history.

Shapes as in `sidrec.model.items.representation`; G granularities.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.config.item import SemanticItem
from sidrec.model.alignment import MatchStatistics, build_alignment
from sidrec.model.fusion import build_fusion
from sidrec.model.history import HistoryIndex
from sidrec.model.items.representation import ItemLookup, ItemRepresentation


class SemanticPart(nn.Module):
    """What all item kinds with SIDs have in common: fused granularities, and dense features of target and history.

    sids: names of the G features that are looked up; left out, the config's granularities.
    multiply, append: uses of the catalog's token weights (ADC-SID, arXiv 2510.25622). width: of the dense features.
    """

    def __init__(self, config: SemanticItem, dim: int, sids: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.sids = config.granularities if sids is None else sids
        self.multiply = config.token_weights in ("multiply", "both")
        self.append = config.token_weights in ("append", "both")
        self.fusion = build_fusion(config.fusion, len(self.sids), dim)
        self.alignment = build_alignment(config.alignment, len(config.granularities))
        self.width = (self.alignment.width if self.alignment else 0) + self.append * len(config.granularities)

    def embed(self, items: ItemLookup) -> Tensor:
        """e_sid [U, D]."""
        granules_UGD = torch.stack([items.embedded[name] for name in self.sids], dim=1)
        if self.multiply:
            granules_UGD = granules_UGD * items.token_weights_UW.unsqueeze(2)
        return self.fusion(granules_UGD)

    def dense(self, sid_UD: Tensor, items: ItemLookup, target_B: Tensor, history: HistoryIndex) -> Tensor:
        """Alignment features and the target's token weights, as far as configured: [B, width]."""
        features = []
        if self.alignment is not None:
            compared = items.granules_UG if isinstance(self.alignment, MatchStatistics) else sid_UD
            assert compared is not None, "match statistics are for models whose batches have granules"
            features.append(self.alignment(compared, target_B, history))
        if self.append:
            features.append(functional.embedding(target_B, items.token_weights_UW))
        return torch.cat(features, dim=1) if features else target_B.to(sid_UD.dtype).unsqueeze(1)[:, :0]


class SemanticRepresentation(ItemRepresentation):
    """An item representation with SIDs in it."""

    semantic: SemanticPart
