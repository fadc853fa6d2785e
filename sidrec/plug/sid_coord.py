"""SID-Coord for anyone's own model: between its embedding collection and whatever eats the KeyedTensor.

Shapes: B rows, A alignment features, D width.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from sidrec.config.item import ExactIndex, GranularityTokens, NoAlignment, SidCoordItem
from sidrec.model.fusion_and_gate import build_gate
from sidrec.model.history import index_history
from sidrec.model.items import ItemLookup, SemanticPart
from sidrec.model.tables import embedding_tables, one_feature_each
from sidrec.plug.sid_join import JoinedSids, SidJoin, catalog_rows
from sidrec.plug.statistics import Statistics
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog

PUBLISHED = SidCoordItem()
"""As the paper has it."""


class SidCoord(nn.Module):
    """Puts gated HID and SID (SID-Coord, arXiv 2604.10471) in the place of an item's embedding.

    The model's own item table is the HID table. SID tables come beside it, in a collection `sid_tables` with one table
    per granularity, called as these (`s1`, `s12`): sharded, planned and trained as the model's own tables are. Item ids
    are the rows of the item table; those that the catalog does not know have no SID, 0 among them.

    catalog: item id -> SID. Checkpoints remember its fingerprint.
    item: the target's feature, one id per row at most, and the key of its embedding. history: the feature of the items
        that a user liked, for the alignment; without one there is none.
    items, dim: rows and width D of the item table.
    statistics: what the gate sees; needed where it sees any, as it does by default.
    alignment_key: key of the alignment features [B, A] in the result; left out, they go into the item's embedding.
    device: of everything here; with `meta`, for models that TorchRec is to shard, of the SID tables alone.
    data_type: of the SID tables.

    Raises ContractError for a catalog that does not fit, for a gate without statistics, and where histories should
    become features: they stay the model's own.
    """

    catalog_fingerprint: Tensor

    def __init__(
        self,
        catalog: Catalog,
        items: int,
        dim: int,
        item: str = "item_id",
        history: str | None = None,
        statistics: Statistics | None = None,
        config: SidCoordItem = PUBLISHED,
        alignment_key: str | None = None,
        device: torch.device | None = None,
        data_type: DataType = DataType.FP32,
    ) -> None:
        super().__init__()
        _check(config, statistics)
        rows = catalog_rows(catalog, config, items)
        self.item, self.alignment_key, self.fingerprint = item, alignment_key, rows.fingerprint
        with torch.device("cpu"):  # a model may be built on `meta` as a whole; these layers have first values already
            self.join = SidJoin(rows, item, history, statistics)
            moments = statistics.moments() if statistics else (torch.zeros(0), torch.zeros(0))
            self.coordination = Coordination(config, dim, *moments, history is not None, alignment_key is None)
            self.register_buffer("catalog_fingerprint", _as_bytes(rows.fingerprint))
        if device is not None and device.type != "meta":
            self.to(device)
        tables = one_feature_each(dict(zip(rows.granularities, rows.table_rows, strict=True)))
        self.sid_tables = embedding_tables(tables, dim, data_type=data_type, device=device)
        self._checked = False

    def forward(self, embedded: KeyedTensor, features: KeyedJaggedTensor) -> KeyedTensor:
        """The same keys, in the same order; the item's embedding is e, all others are as they were.

        embedded: what the model's collection made of `features`, which also hold history and statistics.
        Raises ContractError for a batch without these features, and at the first batch where the dense layers have an
        optimizer in backward, or a checkpoint of another catalog was loaded.
        """
        looked_up = embedded.to_dict()
        target_BD, aligned_BA = self.target(looked_up[self.item], features)
        return _with_target(looked_up, self.item, target_BD, self.alignment_key, aligned_BA)

    def target(self, hid_BD: Tensor, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """e [B, D] and the alignment features [B, A]. hid_BD: the item's embedding. Raises as `forward` does."""
        self._check_once()
        joined = self.join(features, not isinstance(self.sid_tables, EmbeddingBagCollection))
        return self.coordination(hid_BD, self.sid_tables(joined.granules), joined)

    def _check_once(self) -> None:
        if self._checked:
            return
        for name, parameter in self.coordination.named_parameters():
            if hasattr(parameter, "_in_backward_optimizers"):
                expected = (
                    "an optimizer of the dense layers; apply_optimizer_in_backward takes embedding_parameters(model)"
                )
                raise ContractError(f"SID-Coord, {name}", expected, "an optimizer in backward")
        found = bytes(self.catalog_fingerprint.tolist()).hex()
        if found != self.fingerprint:
            raise ContractError("checkpoint of a plugged model", f"the catalog {self.fingerprint}", f"{found}")
        self._checked = True

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._checked = False


@fx.wrap  # the pipelines trace the model, and fx cannot look into the making of a KeyedTensor
def _with_target(
    looked_up: dict[str, Tensor], item: str, target_BD: Tensor, alignment_key: str | None, aligned_BA: Tensor
) -> KeyedTensor:
    embedded = {**looked_up, item: target_BD} | ({alignment_key: aligned_BA} if alignment_key else {})
    return KeyedTensor.from_tensor_list(list(embedded), list(embedded.values()))


def _check(config: SidCoordItem, statistics: Statistics | None) -> None:
    if config.gate.needs_statistics and statistics is None:
        expected = "StatFeatures or ItemCounts for the gate to see, or gate kind sum"
        raise ContractError("SID-Coord, statistics", expected, "none")
    # Histories and the item table are the host's own; hashed and subword tables are choices of sidrec's ranker alone.
    wanted = {"history": ("hid",), "hid_index": ExactIndex(), "tokens": GranularityTokens(), "index": ExactIndex()}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ContractError(f"SID-Coord in another model, config.{name}", f"{value}", getattr(config, name))


def _as_bytes(fingerprint: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(fingerprint)), dtype=torch.uint8)


# What SID-Coord computes between a model's embeddings and its interaction layers.
#
# Shapes: B rows, U bags, A alignment features, D width.


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


# TorchRec's sparse architectures with SID-Coord in them; the rest of a model does not see the difference.
#
# Both keep the old architecture's collection under its name, so that the keys of old checkpoints stay valid.
#
# Shapes: B rows, F features, D width.


class SidCoordSparseArch(nn.Module):
    """For DLRM, DLRM_DCN, DLRM_Projection: as torchrec.models.dlrm.SparseArch, with F, D, sparse_feature_names."""

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection, sid_coord: SidCoord) -> None:
        super().__init__()
        self.embedding_bag_collection = embedding_bag_collection
        self.sid_coord = sid_coord
        tables = embedding_bag_collection.embedding_bag_configs()
        self.sparse_feature_names = [name for table in tables for name in table.feature_names]
        self.F = len(self.sparse_feature_names)
        self.D = tables[0].embedding_dim

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Returns [B, F, D]. Raises as `SidCoord.forward` does."""
        embedded = self.embedding_bag_collection(features).to_dict()
        target_BD, _ = self.sid_coord.target(embedded[self.sid_coord.item], features)
        stacked = [target_BD if name == self.sid_coord.item else embedded[name] for name in self.sparse_feature_names]
        return torch.cat(stacked, dim=1).reshape(-1, self.F, self.D)


class SidCoordKeyedArch(nn.Module):
    """For SimpleDeepFMNN: as torchrec.models.deepfm.SparseArch."""

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection, sid_coord: SidCoord) -> None:
        super().__init__()
        self.embedding_bag_collection = embedding_bag_collection
        self.sid_coord = sid_coord

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Returns [B, D] per feature. Raises as `SidCoord.forward` does."""
        return self.sid_coord(self.embedding_bag_collection(features), features)
