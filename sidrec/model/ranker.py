"""The ranker: from a Batch to logits and loss.

    Batch.items -> item tables -> ItemLookup [U, D] -> item representation (items.py) -> [B, F, D] and dense features
    -> backbone (backbones.py), with context embeddings and the row's dense columns -> logits [B]

Shapes: B rows, F embedding features, D width, X dense columns, S statistics, E alignment features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import DataType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from sidrec.config.item import ContentItem, GateSidItem, HidAndSidItem, HidItem, Item, SidCoordItem, SidItem
from sidrec.config.model import ModelConfig, Pooling
from sidrec.config.recipe import PrecisionConfig
from sidrec.data.batch import Batch
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import HID
from sidrec.model.backbones import build_backbone
from sidrec.model.fusion_and_gate import GranularityFusion, StandardizeStats, WeighingGate
from sidrec.model.gate_sid import GateSidRepresentation
from sidrec.model.history import Paths, length_of_history
from sidrec.model.items import (
    ContentRepresentation,
    HidAndSidRepresentation,
    HidRepresentation,
    ItemRepresentation,
    SidCoordRepresentation,
    SidRepresentation,
)
from sidrec.model.semantic_part import ItemLookup, split_lookup
from sidrec.model.tables import NO_INITS, UpdateCounts, embedding_tables, managed_table, one_feature_each, with_managed

FLOAT32 = PrecisionConfig()
TABLE_TYPES = {"float32": DataType.FP32, "float16": DataType.FP16}


class Ranker(nn.Module):
    """Scores rows. Its tables are on `meta` until the model is sharded or materialised.

    items: EmbeddingBagCollection over unique items (stride U); None if all item tables are managed.
    managed_hids: the HID table, if it is managed; else None.
    updates: the updates that HID rows have received, if the item kind reads them; else None.
    context: EmbeddingBagCollection over the context columns (stride B), or None. A column of lists gives the mean of
        its ids' vectors, 0 without ids.
    """

    def __init__(
        self,
        config: ModelConfig,
        sizes: Sizes,
        paths: Paths | None = None,
        precision: PrecisionConfig = FLOAT32,
        device: str = "cpu",
    ) -> None:
        """paths: None for those of the batch's device. device: where the layers compute, cpu or cuda."""
        super().__init__()
        self.paths = paths
        self.backbone_in = None if precision.backbone == "float32" else (device, getattr(torch, precision.backbone))
        dim, kind = config.embedding_dim, TABLE_TYPES[precision.tables]
        mean_S, std_S = torch.tensor(sizes.stats_mean), torch.tensor(sizes.stats_std)
        inits = {HID: config.hid_init} | {name: config.sid_init for name in sizes.item_tables if name != HID}
        managed = {name: table for name, table in sizes.item_tables.items() if table.managed}
        plain = {name: table for name, table in sizes.item_tables.items() if not table.managed}
        self.items = embedding_tables(plain, dim, inits, kind) if plain else None
        counts = config.item.reads_updates
        self.managed_hids = None
        if managed:
            self.managed_hids = managed_table(HID, managed[HID], dim, config.hid_init, rows=counts, data_type=kind)
        self.updates = UpdateCounts(sizes.item_tables[HID].rows) if counts else None
        self.context_columns = tuple(sizes.context_rows)
        context = one_feature_each(sizes.context_rows)
        self.context = embedding_tables(context, dim, NO_INITS, kind, averaged=sizes.context_lists) if context else None
        self.items_boundary = GradientBoundary()
        self.managed_boundary = GradientBoundary()
        self.context_boundary = GradientBoundary()
        self.item = build_item(config.item, config.history_pooling, dim, sizes)
        self.statistics = StandardizeStats(mean_S, std_S) if config.stats_as_dense and sizes.stats_mean else None
        dense_width = sizes.dense + 1 + (len(mean_S) if self.statistics else 0) + self.item.width
        self.backbone = build_backbone(config.backbone, self.item.features, self.context_columns, dim, dense_width)

    def score(self, batch: Batch) -> Tensor:
        """Logits [B]."""
        begun = self._begin_lookups(batch)
        return self._score(batch, self._look_up(batch, begun), begun.context)

    def _begin_lookups(self, batch: Batch) -> "Lookups":
        """Looks up every table. Ranks exchange embeddings in the background until these are read: those of items while
        context tables are looked up, those of the context while items are represented."""
        items = None if self.items is None else self.items_boundary(self.items(batch.items))
        managed, hid_rows = None, batch.items
        if self.managed_hids is not None:
            found = self.managed_hids(batch.items)
            managed, hid_rows = self.managed_boundary(found[0]), found[1]
        context = None if self.context is None else self.context_boundary(self.context(batch.context))
        return Lookups(items, managed, hid_rows, context)

    def _look_up(self, batch: Batch, begun: "Lookups | None" = None) -> ItemLookup:
        """begun: None to begin the lookups here."""
        begun = begun or self._begin_lookups(batch)
        embedded = {} if begun.items is None else _parts(begun.items)
        if begun.managed is not None:
            embedded = with_managed(embedded, _in_float32(begun.managed.to_dict()))
        has_sid_U = _looked_up(batch.items, self.item.sids) if self.item.sids else None
        return ItemLookup(
            embedded,
            batch.token_weights_UW,
            batch.granules_UG,
            batch.content_UV,
            has_sid_U,
            chance_B=batch.chance_B if self.training else None,
            updates_U=None if self.updates is None else self.updates(begun.hid_rows),
            paths=self.paths,
        )

    def _score(self, batch: Batch, looked_up: ItemLookup, context: Any) -> Tensor:
        """context: as in `Lookups`."""
        of_column = {} if context is None else _in_float32(context.to_dict())
        rows = RowInputs(batch.target_B, batch.history_BT, batch.stats_BS, batch.dense_BX)
        return self.score_rows(looked_up, rows, [of_column[name] for name in self.context_columns])

    def score_rows(self, items: ItemLookup, rows: "RowInputs", context: Sequence[Tensor]) -> Tensor:
        """Logits [B], from what was looked up. context: a column's embeddings each, [B, D]."""
        embedded_BFD, aligned_BE = self.item(items, rows.target_B, rows.history_BT, rows.stats_BS)
        if context:
            embedded_BFD = torch.cat([embedded_BFD, torch.stack(list(context), dim=1)], dim=1)
        length_B1 = torch.log1p(length_of_history(rows.history_BT, items.paths))
        dense = [rows.dense_BX, length_B1, aligned_BE]
        if self.statistics is not None:
            dense.append(self.statistics(rows.stats_BS))
        if self.backbone_in is None:
            return self.backbone(torch.cat(dense, dim=1), embedded_BFD).squeeze(1)
        with torch.autocast(*self.backbone_in):
            return self.backbone(torch.cat(dense, dim=1), embedded_BFD).squeeze(1).float()

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[dict[str, Tensor], Tensor]]:
        """Returns the loss to differentiate, and (terms by name, logits [B]), detached, as TorchRec's pipelines expect.

        The loss is binary cross-entropy plus, in training, the losses of the item representation. Each term is the sum
        over this rank's rows divided by `rows_per_rank`, so that its mean over ranks is the mean over all rows of the
        step. Terms: `loss`, the total, and each loss of the item representation.
        """
        begun = self._begin_lookups(batch)
        looked_up = self._look_up(batch, begun)
        logits_B = self._score(batch, looked_up, begun.context)
        loss_B = functional.binary_cross_entropy_with_logits(logits_B, batch.label_B, reduction="none")
        added = self.item.losses(looked_up, batch.target_B, batch.stats_BS) if self.training else {}
        terms = {name: _mean(term_B, batch) for name, term_B in added.items()}
        loss = sum(terms.values(), _mean(loss_B, batch))
        return loss, ({name: term.detach() for name, term in {"loss": loss, **terms}.items()}, logits_B.detach())

    @property
    def fusion(self) -> GranularityFusion | None:
        """The attention over an item's SID features; None for item kinds and fusions without one."""
        return self.item.attention

    @property
    def gate(self) -> WeighingGate | None:
        """The gate between HID and SID, if its weight differs between items; None for others and for other kinds."""
        return self.item.weighing_gate

    def gate_values(self, batch: Batch) -> Tensor:
        """`gate_of_rows` of a batch."""
        has_sid_B = _looked_up(batch.items, self.item.sids)[batch.target_B]
        updates_B = None
        if self.updates is not None:
            hid_rows = batch.items if self.managed_hids is None else self.managed_hids(batch.items)[1]
            updates_B = self.updates(hid_rows)[batch.target_B]
        return self.gate_of_rows(batch.stats_BS, has_sid_B, updates_B)

    def gate_of_rows(self, stats_BS: Tensor, has_sid_B: Tensor, updates_B: Tensor | None) -> Tensor:
        """g of every row [B], the mean over its dimensions; NaN for a target without a SID, which no gate mixes."""
        assert self.gate is not None, "a model with a gate"
        return self.gate.value(stats_BS, updates_B).mean(dim=1).masked_fill(~has_sid_B, torch.nan)


@fx.wrap  # TorchRec's pipelines trace the ranker, and fx cannot trace a choice by what was found
def _parts(found: Any) -> dict[str, Tensor]:
    """The embeddings of each feature, in float32, from an entry of `Lookups`."""
    return {name: values.float() for name, values in split_lookup(found).items()}


@fx.wrap  # TorchRec's pipelines trace the ranker, and fx cannot trace a loop over tables
def _in_float32(embedded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lookups of another type as the layers read them."""
    return {name: values.float() for name, values in embedded.items()}


@fx.wrap  # TorchRec's pipelines trace the ranker, and fx cannot trace a search among keys
def _looked_up(items: KeyedJaggedTensor, features: tuple[str, ...]) -> Tensor:
    """Whether each bag has an id of any of these neighbouring features, bool [U].

    In training an item has rows of all its SID features, or of none. A later item may have codes, or combinations of
    codes, that training did not meet: then it has rows of some features.
    """
    first = items.keys().index(features[0])
    lengths_FU = items.lengths().view(len(items.keys()), items.stride())
    return lengths_FU[first : first + len(features)].any(dim=0)


def build_item(config: Item, pooling: Pooling, dim: int, sizes: Sizes) -> ItemRepresentation:
    """The module of the recipe's sections `model.item` and `model.history_pooling`."""
    match config:
        case HidItem():
            return HidRepresentation(config, pooling, dim)
        case SidItem():
            return SidRepresentation(config, pooling, dim, sizes)
        case HidAndSidItem():
            return HidAndSidRepresentation(config, pooling, dim, sizes)
        case SidCoordItem():
            return SidCoordRepresentation(config, pooling, dim, sizes)
        case GateSidItem():
            return GateSidRepresentation(config, dim, sizes)
        case ContentItem():
            return ContentRepresentation(config, pooling, dim, sizes.content)


class Lookups(NamedTuple):
    """Embeddings of a batch, to be read by `to_dict`; None for tables that the model lacks.

    hid_rows: rows of the HID table, a KeyedJaggedTensor as in Batch, or TorchRec's awaitable of one.
    """

    items: Any
    managed: Any
    hid_rows: Any
    context: Any


class RowInputs(NamedTuple):
    """What the model reads of the rows besides embeddings: fields of Batch."""

    target_B: Tensor
    history_BT: Tensor
    stats_BS: Tensor
    dense_BX: Tensor


class GradientBoundary(nn.Module):
    """Passes a table collection's embeddings to the layers; can split the backward pass there.

    split: whether a forward pass detaches the layers from the tables. Backward of the loss then stops at `leaf`, the
    layers' copy of the embeddings. To continue into the tables, call backward on `embeddings` with `leaf`'s gradient.
    Both are there once the layers have read the embeddings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.split = False
        self.embeddings: KeyedTensor | None = None
        self.leaf: Tensor | None = None

    def forward(self, embeddings: Any) -> Any:
        """embeddings: a KeyedTensor, or TorchRec's awaitable of one. Returns something with its `to_dict`, which alone
        waits for an awaitable: meanwhile the ranks exchange embeddings."""
        if not (self.split and torch.is_grad_enabled()):
            return embeddings
        return DetachedEmbeddings(self, embeddings) if hasattr(embeddings, "wait") else self.detached(embeddings)

    def detached(self, embeddings: KeyedTensor) -> KeyedTensor:
        """The layers' copy of the embeddings, in float32, at which their backward stops."""
        if embeddings.values().dtype != torch.float32:
            embeddings = KeyedTensor(embeddings.keys(), embeddings.length_per_key(), embeddings.values().float())
        self.embeddings = embeddings
        self.leaf = embeddings.values().detach().requires_grad_()
        return KeyedTensor(embeddings.keys(), embeddings.length_per_key(), self.leaf)

    def read(self) -> KeyedTensor:
        """The embeddings that the layers have read, without the way back to the tables."""
        assert self.embeddings is not None, "the layers read the embeddings of every table"
        return KeyedTensor(self.embeddings.keys(), self.embeddings.length_per_key(), self.embeddings.values().detach())

    def gradient(self) -> Tensor:
        """Of the embeddings' values; zero where the loss does not depend on them."""
        assert self.leaf is not None, "backward follows forward"
        return torch.zeros_like(self.leaf) if self.leaf.grad is None else self.leaf.grad


class DetachedEmbeddings:
    """Embeddings on their way from other ranks, detached at a boundary when they are read."""

    def __init__(self, boundary: GradientBoundary, awaitable: Any) -> None:
        self._boundary, self._awaitable = boundary, awaitable

    def wait(self) -> KeyedTensor:
        """The layers' copy."""
        return self._boundary.detached(self._awaitable.wait())

    def to_dict(self) -> dict[str, Tensor]:
        return self.wait().to_dict()


def dense_names(dense: int, item: int, stats: int) -> list[str]:
    """Names of the backbone's dense features, in the order of `Ranker`: dense columns, the history's length, features
    of the item representation, statistics."""
    numbered = [f"dense column {number}" for number in range(dense)]
    of_item = [f"item's feature {number}" for number in range(item)]
    return [*numbered, "history length", *of_item, *(f"statistic {number}" for number in range(stats))]


def _mean(loss_B: Tensor, batch: Batch) -> Tensor:
    return (loss_B * batch.weight_B).sum() / batch.rows_per_rank


# Parameter counts, for comparisons at equal budgets.


@dataclass(frozen=True)
class Budget:
    """item_rows: rows of all item tables together. item_parameters, context_parameters: rows times D of their tables.

    dense_parameters: all other trained parameters; frozen content vectors and the tokenizer are not among them.
    """

    item_rows: int
    item_parameters: int
    context_parameters: int
    dense_parameters: int


def parameter_budget(config: ModelConfig, sizes: Sizes) -> Budget:
    """Counts the parameters of the ranker of `config` and `sizes`, on `meta`: allocates nothing."""
    with torch.device("meta"):
        ranker = Ranker(config, sizes)
    items, context = _parameters(ranker.items, ranker.managed_hids), _parameters(ranker.context)
    return Budget(
        item_rows=sum(table.rows for table in sizes.item_tables.values()),
        item_parameters=items,
        context_parameters=context,
        dense_parameters=_parameters(ranker) - items - context,
    )


def _parameters(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())
