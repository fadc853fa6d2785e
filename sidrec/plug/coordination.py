"""What SID-Coord computes between a model's embeddings and its interaction layers.

Shapes: B rows, U bags, A alignment features, D width.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedTensor

from sidrec.config.alignment import NoAlignment
from sidrec.config.item import SidCoordItem
from sidrec.model.gate import build_gate
from sidrec.model.history import index_history
from sidrec.model.items.representation import ItemLookup
from sidrec.model.items.semantic import SemanticPart
from sidrec.plug.sid_join import JoinedSids


class Coordination(nn.Module):
    """e = gate(e_hid, e_sid, statistics) + P f, with f the alignment features (SID-Coord, arXiv 2604.10471).

    The paper gives f to the ranker as features of its own. A model whose shape stays as it is takes no more features,
    so P maps them to the item's width [I]; it starts at zero. Where the model takes them, there is no P.

    mean_S, std_S: moments of log1p(statistics). history: whether there is one; without, there is no alignment.
    project: whether f goes into e. width: A.
    """

    def __init__(
        self, config: SidCoordItem, dim: int, mean_S: Tensor, std_S: Tensor, history: bool, project: bool
    ) -> None:
        super().__init__()
        self.semantic = SemanticPart(config if history else replace(config, alignment=NoAlignment()), dim)
        self.gate = build_gate(config.gate, dim, mean_S, std_S)
        self.width = self.semantic.width
        self.project = nn.Linear(self.width, dim, bias=False) if project and self.width else None
        if self.project is not None:
            nn.init.zeros_(self.project.weight)

    def forward(self, hid_BD: Tensor, granules: KeyedTensor, joined: JoinedSids) -> tuple[Tensor, Tensor]:
        """Returns e [B, D] and f [B, A]. granules: what the SID tables hold for the bags, [U, D] per granularity."""
        items = ItemLookup(granules.to_dict(), joined.token_weights_UW, joined.rows_UG)
        sid_UD = self.semantic.embed(items)
        target_BD = self.gate(hid_BD, functional.embedding(joined.target_B, sid_UD), joined.stats_BS)
        aligned_BA = self.semantic.dense(sid_UD, items, joined.target_B, index_history(joined.history_BT))
        if self.project is not None:
            target_BD = torch.addmm(target_BD, aligned_BA, self.project.weight.t())
        return target_BD, aligned_BA
