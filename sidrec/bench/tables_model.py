"""A model for tables that come without one: DLRM's dense arch, interaction and over arch.

Shapes: B rows, F features, D width, X dense columns.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import OverArch
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config.backbone import DlrmBackbone
from sidrec.model.backbones.dlrm import build_dlrm

DENSE = 13
"""Dense columns X, as Criteo's logs have."""


class TablesModel(nn.Module):
    """Scores rows by one collection of tables, and by a dense part small enough to leave the tables in sight.

    With tables of one width, TorchRec's DLRM; with several, whose embeddings cannot be multiplied with one another, an
    MLP over all of them side by side.
    """

    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        self.tables = tables
        configs = tables.embedding_bag_configs()
        self.features = [feature for table in configs for feature in table.feature_names]
        widths = {table.embedding_dim for table in configs}
        total = sum(table.embedding_dim * len(table.feature_names) for table in configs)
        config = DlrmBackbone()
        self.dlrm = build_dlrm(config, self.features, widths.pop(), DENSE) if len(widths) == 1 else None
        self.over = None if self.dlrm else OverArch(total + DENSE, [*config.over_layers, 1])

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor]]:
        """The loss, and what the pipelines hand on: the loss by name, and the logits [B]."""
        embedded = self.tables(batch.sparse_features).to_dict()
        if self.dlrm is not None:
            embedded_BFD = torch.stack([embedded[feature] for feature in self.features], dim=1)
            logits_B = self.dlrm(batch.dense_features, embedded_BFD).squeeze(1)
        else:
            assert self.over is not None, "one of the two is there"
            side_by_side = torch.cat([batch.dense_features, *(embedded[feature] for feature in self.features)], dim=1)
            logits_B = self.over(side_by_side).squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(logits_B, batch.labels)
        return loss, ({"loss": loss.detach()}, logits_B.detach())
