"""The ranker: tables, item representation and backbone, from a Batch to loss and logits.

Shapes: B rows, F embedding features, D width, X dense columns, S statistics, E alignment features.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config.model import ModelConfig
from sidrec.data.batch import Batch
from sidrec.data.item_tables import HID
from sidrec.model.backbones.build import build_backbone
from sidrec.model.fusion import GranularityFusion
from sidrec.model.gate import TargetAwareGate
from sidrec.model.items.build import build_item
from sidrec.model.items.representation import ItemLookup
from sidrec.model.items.sid import SidRepresentation
from sidrec.model.items.sid_coord import SidCoordRepresentation
from sidrec.model.statistics import StandardizeStats


@dataclass(frozen=True)
class Sizes:
    """What the data decides about the model's shape.

    item_rows: item table -> rows. context_rows: id column -> rows. dense: int_* columns used (X).
    stats_mean, stats_std: moments of log1p(stat_*) over the train split, one per statistic (S).
    """

    item_rows: Mapping[str, int]
    context_rows: Mapping[str, int]
    dense: int
    stats_mean: tuple[float, ...]
    stats_std: tuple[float, ...]


class Ranker(nn.Module):
    """Scores rows. Tables are made on `meta`: whoever shards or materialises the model fills them.

    items: EmbeddingBagCollection over unique items (stride U).
    context: another over the other id columns (stride B), or None.
    """

    def __init__(self, config: ModelConfig, sizes: Sizes) -> None:
        super().__init__()
        dim = config.embedding_dim
        mean_S, std_S = torch.tensor(sizes.stats_mean), torch.tensor(sizes.stats_std)
        inits = {HID: config.hid_init} | {name: config.sid_init for name in sizes.item_rows if name != HID}
        self.items = _tables({name: (rows, inits[name]) for name, rows in sizes.item_rows.items()}, dim)
        self.context_columns = tuple(sizes.context_rows)
        self.context = (
            _tables({name: (rows, None) for name, rows in sizes.context_rows.items()}, dim)
            if sizes.context_rows
            else None
        )
        self.item = build_item(config.item, config.history_pooling, dim, mean_S, std_S)
        self.statistics = StandardizeStats(mean_S, std_S) if config.stats_as_dense and sizes.stats_mean else None
        dense_width = sizes.dense + 1 + (len(mean_S) if self.statistics else 0) + self.item.width
        self.backbone = build_backbone(config.backbone, self.item.features, self.context_columns, dim, dense_width)

    def score(self, batch: Batch) -> Tensor:
        """Logits [B]."""
        looked_up = ItemLookup(self.items(batch.items).to_dict(), batch.token_weights_UW)
        embedded_BFD, aligned_BE = self.item(looked_up, batch.target_B, batch.history_BT, batch.stats_BS)
        if self.context is not None:
            context = self.context(batch.context).to_dict()
            context_BFD = torch.stack([context[name] for name in self.context_columns], dim=1)
            embedded_BFD = torch.cat([embedded_BFD, context_BFD], dim=1)
        length_B1 = torch.log1p((batch.history_BT > 0).sum(dim=1, keepdim=True).float())
        dense = [batch.dense_BX, length_B1, aligned_BE]
        if self.statistics is not None:
            dense.append(self.statistics(batch.stats_BS))
        return self.backbone(torch.cat(dense, dim=1), embedded_BFD).squeeze(1)

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the loss to differentiate, and what the pipelines hand on: (loss, logits [B]), both detached.

        The loss is binary cross-entropy summed over this rank's rows, over `rows_per_rank`: averaged over ranks, as
        gradients are, it is the mean over all rows of the step.
        """
        logits_B = self.score(batch)
        loss_B = functional.binary_cross_entropy_with_logits(logits_B, batch.label_B, reduction="none")
        loss = (loss_B * batch.weight_B).sum() / batch.rows_per_rank
        return loss, (loss.detach(), logits_B.detach())

    @property
    def fusion(self) -> GranularityFusion | None:
        """The attention over SID granularities, where the item representation has SIDs."""
        if isinstance(self.item, (SidRepresentation, SidCoordRepresentation)):
            return self.item.semantic.fusion
        return None

    @property
    def gate(self) -> TargetAwareGate | None:
        """The gate, where the item representation has one that learns."""
        gate = self.item.gate if isinstance(self.item, SidCoordRepresentation) else None
        return gate if isinstance(gate, TargetAwareGate) else None


def _tables(rows: Mapping[str, tuple[int, float | None]], dim: int) -> EmbeddingBagCollection:
    """One collection with a table per entry: name -> (rows, initial range or None for TorchRec's 1/sqrt(rows))."""
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name,
                feature_names=[name],
                num_embeddings=count,
                embedding_dim=dim,
                pooling=PoolingType.SUM,
                weight_init_min=None if init is None else -init,
                weight_init_max=init,
            )
            for name, (count, init) in rows.items()
        ],
        device=torch.device("meta"),
    )
