"""`SidCoord`: SID-Coord as a module behind embedding collections.

Shapes: B rows, U bags, F features, A alignment features, D width; P ids of a sequence in one line, Q those of all
sequences, X either of B and Q.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torchrec.distributed.types import LazyAwaitable
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from sidrec.config.item import SidCoordItem
from sidrec.config.item_parts import ExactIndex, GranularityTokens, NoAlignment, StatsGate
from sidrec.model.fusion_and_gate import build_gate
from sidrec.model.history import Paths
from sidrec.model.semantic_part import ItemLookup, SemanticPart, hids_dropped, sids_dropped, zero_where
from sidrec.model.tables import embedding_tables, one_feature_each
from sidrec.plug.sid_join import JoinedSids, SidJoin, catalog_rows, impressions_of
from sidrec.plug.statistics import ItemCounts, Statistics
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog, load_catalog
from sidrec.text import did_you_mean

PUBLISHED = SidCoordItem()
"""SID-Coord as published."""


class SidCoord(nn.Module):
    """Replaces the embeddings of items by SID-Coord's (arXiv 2604.10471): a gated mix of HID and SID.

    `forward` replaces the target's in the result of an EmbeddingBagCollection, `sequences` those of the target and of
    histories in the result of an EmbeddingCollection, before anything attends to them, and `forward` with a third
    argument both. In the paper only the target is mixed; in sequences the same gate sees each item's own counts [I].

    The model's item table is the HID table. A collection `sid_tables` has one table per granularity, with its name
    (`s1`, `s12`); TorchRec plans, shards and trains them like the model's own. Item ids are rows of the item table;
    ids that the catalog lacks have no SID, and their embedding is the HID alone. In a model of your own::

        import torch
        from torch import nn
        from torchrec.modules.embedding_configs import EmbeddingBagConfig
        from torchrec.modules.embedding_modules import EmbeddingBagCollection
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        from sidrec.plug import ItemCounts, SidCoord
        from sidrec.sid.catalog import Catalog, load_catalog

        class MyRanker(nn.Module):
            def __init__(self, catalog):  # a Catalog, or the folder that `sidrec fit` wrote
                super().__init__()
                table = EmbeddingBagConfig(
                    name="t_item", num_embeddings=1000, embedding_dim=16, feature_names=["item_id", "history"]
                )
                self.tables = EmbeddingBagCollection(tables=[table])
                self.sid_coord = SidCoord(
                    catalog, items=1000, dim=16, history="history", statistics=ItemCounts(torch.zeros(1000)),
                    alignment_key="alignment",
                )
                self.layer = nn.Linear(2 * 16 + self.sid_coord.alignment_dim, 1)

            def forward(self, features):
                embedded = self.sid_coord(self.tables(features), features)
                return self.layer(embedded.values()).squeeze(1)

        ids = torch.arange(1, 1000)
        codes = torch.stack([ids % 4, ids % 8, ids % 16], dim=1)
        ranker = MyRanker(Catalog(ids.numpy(), codes.numpy(), codebook_sizes=(4, 8, 16)))
        features = KeyedJaggedTensor(  # two rows: item 5 with history 3, 4; item 6 with history 5
            keys=["item_id", "history"], values=torch.tensor([5, 6, 3, 4, 5]), lengths=torch.tensor([1, 1, 2, 1])
        )
        logits = ranker(features)  # [2]

    catalog: item id -> SID, or its folder. Checkpoints hold its fingerprint.
    items, dim: rows and width D of the item table.
    item: the target's feature, at most one id per row, and the key of its embedding. history: the feature of the items
        that the user liked, for the alignment; without one there is no alignment.
    statistics: the target's exposure counts, the input of the gate; required unless the gate takes none.
    sequences: features of items whose ids an EmbeddingCollection looks up in item tables, to be mixed too: usually the
        target and the history.
    first_id: the id, a row of the item table, of the catalog's item 1. With 0, id i is the catalog's item i + 1.
    alignment_key: key of the alignment features [B, A] in the result; None adds a projection of them to the item's
        embedding. A is `alignment_dim`.
    device: of all parameters; `meta`, for models that TorchRec shards, applies to the SID tables alone.
    data_type: of the SID tables.
    warm_start: the gate starts at the HID alone, and the model first predicts as without SID-Coord.

    Raises ContractError for a catalog that does not fit the item table, a gate without its statistics, and choices that
    belong to the host model (its histories and the index of its item table).
    """

    catalog_fingerprint: Tensor

    def __init__(
        self,
        catalog: Catalog | Path | str,
        items: int,
        dim: int,
        item: str = "item_id",
        history: str | None = None,
        statistics: Statistics | None = None,
        config: SidCoordItem = PUBLISHED,
        alignment_key: str | None = None,
        device: torch.device | None = None,
        data_type: DataType = DataType.FP32,
        warm_start: bool = False,
        sequences: Sequence[str] = (),
        first_id: int = 1,
    ) -> None:
        super().__init__()
        _check(config, statistics)
        if warm_start:
            config = _starting_at_hid(config)
        known = catalog if isinstance(catalog, Catalog) else load_catalog(Path(catalog))
        rows = catalog_rows(known, config, items, first_id)
        self.item, self.alignment_key, self.fingerprint = item, alignment_key, rows.fingerprint
        with torch.device("cpu"):  # never on `meta`: sharding does not initialise these layers
            self.join = SidJoin(rows, item, history, statistics, sequences)
            self.sequence_features = self.join.sequences  # a pipeline puts another object in the place of `join`
            moments = statistics.moments() if statistics else (torch.zeros(0), torch.zeros(0))
            shown = impressions_of(rows, self.join.counts_IS) if config.fusion.needs_counts else None
            self.coordination = Coordination(config, dim, *moments, history is not None, alignment_key is None, shown)
            self.register_buffer("catalog_fingerprint", _as_bytes(rows.fingerprint))
        if device is not None and device.type != "meta":
            self.to(device)
        tables = one_feature_each(dict(zip(rows.granularities, rows.table_rows, strict=True)))
        self.sid_tables = embedding_tables(tables, dim, data_type=data_type, device=device)
        self._checked = False

    @property
    def alignment_dim(self) -> int:
        """A, the number of alignment features."""
        return self.coordination.width

    @overload
    def forward(self, embedded: KeyedTensor, features: KeyedJaggedTensor) -> KeyedTensor: ...

    @overload
    def forward(
        self, embedded: KeyedTensor, features: KeyedJaggedTensor, sequences: Mapping[str, JaggedTensor]
    ) -> tuple[KeyedTensor, dict[str, JaggedTensor]]: ...

    def forward(
        self, embedded: KeyedTensor, features: KeyedJaggedTensor, sequences: Mapping[str, JaggedTensor] | None = None
    ) -> KeyedTensor | tuple[KeyedTensor, dict[str, JaggedTensor]]:
        """Returns the same keys in the same order (and `alignment_key` last); only the item's embedding changes, to e.

        embedded: the model's embeddings of `features`, which also hold the history and the statistics.
        sequences: the EmbeddingCollection's result, if its sequences are to be mixed too; then both are returned.
        Raises ContractError for a batch without these features, or a result without the sequences; and at the first
        batch if the dense layers have an optimizer in backward, or a checkpoint of another catalog was loaded.
        """
        looked_up = embedded.to_dict()
        if sequences is None:
            target_BD, aligned_BA = self.target(looked_up[self.item], features)
            return _with_target(looked_up, self.item, target_BD, self.alignment_key, aligned_BA)
        found = _resolved(sequences)
        hid_QD = _vectors(found, self._wanted_sequences(), features)
        joined, granules = self._looked_up(features)
        mixed_BD, mixed_QD, aligned_BA = self.coordination(looked_up[self.item], hid_QD, granules, joined)
        mixed = _with_target(looked_up, self.item, mixed_BD, self.alignment_key, aligned_BA)
        return mixed, _with_vectors(found, self.sequence_features, mixed_QD, None, aligned_BA)

    def sequences(self, sequences: Mapping[str, JaggedTensor], features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Returns the EmbeddingCollection's result with the mixed embeddings of the constructor's `sequences`.

        With `alignment_key`, that key holds the alignment features, one vector a row. For a model whose target is in
        `sequences` and in no KeyedTensor. Raises as `forward` does.
        """
        found = _resolved(sequences)
        hid_QD = _vectors(found, self._wanted_sequences(), features)
        joined, granules = self._looked_up(features)
        _, mixed_QD, aligned_BA = self.coordination(None, hid_QD, granules, joined)
        return _with_vectors(found, self.sequence_features, mixed_QD, self.alignment_key, aligned_BA)

    def target(self, hid_BD: Tensor, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """e [B, D] and the alignment features [B, A]. hid_BD: the target's HID embedding. Raises as `forward` does."""
        joined, granules = self._looked_up(features)
        target_BD, _, aligned_BA = self.coordination(hid_BD, None, granules, joined)
        return target_BD, aligned_BA

    def _looked_up(self, features: KeyedJaggedTensor) -> tuple[JoinedSids, KeyedTensor]:
        """The joined SIDs of a batch, and the SID embeddings of its bags."""
        self._check_once()
        joined = self.join(features, not isinstance(self.sid_tables, EmbeddingBagCollection))
        return joined, self.sid_tables(joined.granules)

    def _wanted_sequences(self) -> tuple[str, ...]:
        if not self.sequence_features:
            expected = "the sequences of SidCoord(sequences=(...)), such as the target and the history"
            raise ContractError("SID-Coord, sequences", expected, "none")
        return self.sequence_features

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


@fx.wrap  # TorchRec's pipelines trace the model, and fx cannot trace the making of a KeyedTensor
def _with_target(
    looked_up: dict[str, Tensor], item: str, target_BD: Tensor, alignment_key: str | None, aligned_BA: Tensor
) -> KeyedTensor:
    embedded = {**looked_up, item: target_BD} | ({alignment_key: aligned_BA} if alignment_key else {})
    return KeyedTensor.from_tensor_list(list(embedded), list(embedded.values()))


@fx.wrap
def _resolved(sequences: Any) -> Mapping[str, JaggedTensor]:
    """An EmbeddingCollection's result. sequences: it, or TorchRec's awaitable of it, perhaps of one that was used."""
    return LazyAwaitable._wait_async(sequences) if isinstance(sequences, LazyAwaitable) else sequences


@fx.wrap
def _vectors(sequences: Mapping[str, JaggedTensor], names: tuple[str, ...], features: KeyedJaggedTensor) -> Tensor:
    """The embeddings of all ids of the sequences, end to end [Q, D]."""
    for name in names:
        if name not in sequences:
            expected = f"a key {name}{did_you_mean(name, sequences)}"
            raise ContractError("SID-Coord, sequences", expected, f"{sorted(sequences)}")
        ids, vectors = len(features[name].values()), len(sequences[name].values())
        if ids != vectors:
            raise ContractError(f"SID-Coord, sequences, {name}", f"a vector for each of its {ids} ids", vectors)
    return torch.cat([sequences[name].values() for name in names])


@fx.wrap
def _with_vectors(
    sequences: Mapping[str, JaggedTensor],
    names: tuple[str, ...],
    mixed_QD: Tensor,
    alignment_key: str | None,
    aligned_BA: Tensor,
) -> dict[str, JaggedTensor]:
    found = dict(sequences)
    parts = mixed_QD.split([len(found[name].values()) for name in names])
    for name, mixed_PD in zip(names, parts, strict=True):
        before = found[name]
        found[name] = JaggedTensor(mixed_PD, weights=before.weights_or_none(), lengths=before.lengths())
    if alignment_key is not None:
        ones_B = torch.ones(len(aligned_BA), dtype=torch.int64, device=aligned_BA.device)
        found[alignment_key] = JaggedTensor(aligned_BA, lengths=ones_B)
    return found


def _check(config: SidCoordItem, statistics: Statistics | None) -> None:
    if config.gate.needs_statistics and statistics is None:
        expected = "StatFeatures or ItemCounts for the gate to see, or gate kind sum"
        raise ContractError("SID-Coord, statistics", expected, "none")
    if config.fusion.needs_counts and not isinstance(statistics, ItemCounts):
        expected = f"ItemCounts, whose first count fusion {config.fusion.kind} adds up by granule"
        raise ContractError("SID-Coord, statistics", expected, type(statistics).__name__)
    if config.fusion.needs_hid:
        expected = "a fusion that needs no HIDs: those of the history are the host model's"
        raise ContractError("SID-Coord in another model, config.fusion", expected, config.fusion.kind)
    if config.contrast is not None:
        expected = "none: a loss is the host model's to add"
        raise ContractError("SID-Coord in another model, config.contrast", expected, "a section")
    if config.gate.needs_updates:
        expected = "a gate that reads exposures, such as stats, as updates of the host's item table are not counted"
        raise ContractError("SID-Coord in another model, config.gate", expected, "one that reads updates")
    if "mixed" not in config.views:
        raise ContractError("SID-Coord in another model, config.views", "mixed among them", list(config.views))
    # The host model has its own histories and item table. Only sidrec's ranker has hashed and subword SID tables.
    wanted: dict[str, object] = {
        "history": ("hid",),
        "hid_index": ExactIndex(),
        "tokens": GranularityTokens(),
        "index": ExactIndex(),
        "hid_dropout_history": 0.0,
    }
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ContractError(f"SID-Coord in another model, config.{name}", f"{value}", getattr(config, name))


def _starting_at_hid(config: SidCoordItem) -> SidCoordItem:
    if not isinstance(config.gate, StatsGate):
        expected = "a gate of kind stats with warm_start, as it can start at the HID"
        raise ContractError("SID-Coord, config.gate", expected, config.gate.kind)
    return replace(config, gate=replace(config.gate, start="hid_only"))


def _as_bytes(fingerprint: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(fingerprint)), dtype=torch.uint8)


class Coordination(nn.Module):
    """The dense layers: e = gate(e_hid, e_sid, statistics) + P f with alignment features f [B, A].

    With further `views` the gate's mixture m becomes V [m; e_hid; e_sid], in the order of the views, so that the host
    still gets one embedding of width D; V starts such that this is m [I]. Dropout draws rows of the batch from torch's
    generator, on every rank its own.

    In the paper f are additional features of the ranker. A host model accepts no additional features, so P projects
    them to the item's width [I]; P starts at zero. With `alignment_key` there is no P.

    These layers compute in the type of their own parameters, under autocast too: cosines and sums over histories are
    inexact in half precision, and cost little beside a host model's layers. e has the type of e_hid.

    mean_S, std_S: moments of log1p(statistics). history: whether there is one; otherwise there is no alignment.
    project: whether to add P f to e. width: A. impressions: as `build_fusion` takes them.
    """

    like: Tensor
    """An element of the type and on the device of the parameters, which fx does not replace by a proxy."""

    def __init__(
        self,
        config: SidCoordItem,
        dim: int,
        mean_S: Tensor,
        std_S: Tensor,
        history: bool,
        project: bool,
        impressions: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        aligned = config if history else replace(config, alignment=NoAlignment())
        self.semantic = SemanticPart(aligned, dim, impressions=impressions)
        self.gate = build_gate(config.gate, dim, mean_S, std_S)
        self.width = self.semantic.width
        self.views, self.hid_rate, self.sid_rate = config.views, config.hid_dropout, config.sid_dropout
        self.combine = _combining(config.views, dim) if len(config.views) > 1 else None
        self.project = nn.Linear(self.width, dim, bias=False) if project and self.width else None
        if self.project is not None:
            nn.init.zeros_(self.project.weight)
        self.paths: Paths | None = None  # those of the batch's device
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(
        self, hid_BD: Tensor | None, hid_QD: Tensor | None, granules: KeyedTensor, joined: JoinedSids
    ) -> tuple[Any, Any, Tensor]:
        """e of the target [B, D] and of the sequences' items [Q, D], None where no HIDs are given; and f [B, A].

        granules: the SID embeddings of the bags, [U, D] per granularity.
        """
        own = self.like.dtype
        granules_UD = {name: granule_UD.to(own) for name, granule_UD in granules.to_dict().items()}
        drops = self.training and self.hid_rate + self.sid_rate > 0
        chance_B = torch.rand_like(joined.target_B, dtype=torch.float32) if drops else None
        weights_UW = joined.token_weights_UW.to(own)
        items = ItemLookup(granules_UD, weights_UW, joined.rows_UG, chance_B=chance_B, paths=self.paths)
        no_hid_B, no_sid_B = hids_dropped(items, self.hid_rate), sids_dropped(items, self.sid_rate)
        no_hid_Q, no_sid_Q = (_of_ids(dropped_B, joined.row_P, joined.bag_Q) for dropped_B in (no_hid_B, no_sid_B))
        with torch.autocast(self.like.device.type, enabled=False):
            sid_UD = self.semantic.embed(items)
            target_BD = self._mixed(hid_BD, sid_UD, items, joined.target_B, joined.stats_BS, no_hid_B, no_sid_B)
            mixed_QD = self._mixed(hid_QD, sid_UD, items, joined.bag_Q, joined.stats_QS, no_hid_Q, no_sid_Q)
            history = items.index(joined.history_BT)
            aligned_BA = self.semantic.dense(sid_UD, items, joined.target_B, history, no_sid_B).to(own)
            if hid_BD is not None:
                target_BD = self._with_alignment(target_BD, aligned_BA).to(hid_BD.dtype)
            if hid_QD is not None:
                of_target, others = mixed_QD.tensor_split([len(joined.row_P)])
                of_target = self._with_alignment(of_target, aligned_BA.index_select(0, joined.row_P))
                mixed_QD = torch.cat([of_target, others]).to(hid_QD.dtype)
        return target_BD, mixed_QD, aligned_BA

    def _mixed(
        self,
        hid_XD: Tensor | None,
        sid_UD: Tensor,
        items: ItemLookup,
        bag_X: Tensor,
        stats_XS: Tensor,
        no_hid_X: Tensor | None,
        no_sid_X: Tensor | None,
    ) -> Any:
        if hid_XD is None:
            return None
        own = self.like.dtype
        hid_XD = zero_where(no_hid_X, hid_XD.to(own))
        sid_XD = zero_where(no_sid_X, functional.embedding(bag_X, sid_UD))
        has_sid_X = items.has_sid(bag_X) if no_sid_X is None else items.has_sid(bag_X) & ~no_sid_X
        parts = {
            "mixed": self.gate(hid_XD, sid_XD, stats_XS.to(own), has_sid_X, None, items.regions),
            "hid": hid_XD,
            "sid": sid_XD,
        }
        if self.combine is None:
            return parts["mixed"]
        return self.combine(torch.cat([parts[view] for view in self.views], dim=1))

    def _with_alignment(self, mixed_XD: Tensor, aligned_XA: Tensor) -> Tensor:
        return mixed_XD if self.project is None else torch.addmm(mixed_XD, aligned_XA, self.project.weight.t())


def _combining(views: Sequence[str], dim: int) -> nn.Linear:
    """V, which starts as the view `mixed` alone."""
    combine = nn.Linear(len(views) * dim, dim, bias=False)
    blocks = [torch.eye(dim) if view == "mixed" else torch.zeros(dim, dim) for view in views]
    with torch.no_grad():
        combine.weight.copy_(torch.cat(blocks, dim=1))
    return combine


def _of_ids(dropped_B: Tensor | None, row_P: Tensor, bag_Q: Tensor) -> Tensor | None:
    """Of the sequences' ids, those of a dropped row's target; the target's ids come first."""
    if dropped_B is None:
        return None
    return functional.pad(dropped_B.index_select(0, row_P), (0, len(bag_Q) - len(row_P)))
