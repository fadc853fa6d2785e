"""`attach`: adds SID-Coord to a model of torchrec.models in place. Its other layers stay as they are."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.models.deepfm import SparseArch as DeepFmSparseArch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from sidrec.config.item import HidItem, Item, SidCoordItem
from sidrec.plug.sid_coord import PUBLISHED, SidCoord
from sidrec.plug.statistics import Statistics
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from sidrec.text import did_you_mean

M = TypeVar("M", bound=nn.Module)


def attach(
    model: M,
    catalog: Catalog | Path | str,
    item: str = "item_id",
    history: str | None = None,
    statistics: Statistics | None = None,
    config: Item = PUBLISHED,
    warm_start: bool = False,
    first_id: int = 1,
) -> M:
    """Replaces the model's `sparse_arch` by one with SID-Coord in it, and returns the model.

    Call it before DistributedModelParallel. SID tables are created on the device of the item table; on `meta`,
    TorchRec shards and initialises them with the model's own. The training script changes in two places: the optimizer
    in backward takes `embedding_parameters(model)`, and TrainPipelineSparseDist takes `pipeline_postproc=True` (without
    it the losses are the same, but the SID tables are looked up outside the pipeline). The example of `sidrec.plug` is
    complete.

    model: DLRM, DLRM_DCN, DLRM_Projection, SimpleDeepFMNN, or a wrapper of one of them, such as DLRMTrain.
    catalog: item id -> SID, or its folder. Its item ids are row numbers of the item table, unless `first_id` is not 1.
    item: the target's feature, one id per row. history: the feature of the items that the user liked, read from a table
        with the same number of rows; without one there are no alignment features.
    statistics: the target's exposure counts, the input of the gate.
    config: the variant of SID-Coord. HidItem() leaves the model unchanged.
    warm_start: the gate starts at the HID alone, so that the model first predicts as it did without SID-Coord. See
        `load_without_sids`.
    first_id: the row of the item table that belongs to the catalog's item 1; 0 for a table that starts at 0.

    Raises ContractError, and leaves the model unchanged, for a model without a known sparse_arch, features that its
    tables do not read, names or widths that clash, and what `SidCoord` refuses.
    """
    if isinstance(model, DistributedModelParallel):
        raise ContractError("attach", "a model before DistributedModelParallel", "one that is sharded")
    if isinstance(model, EmbeddingBagCollection | EmbeddingCollection):
        raise ContractError("attach", f"a model with a sparse_arch ({ELSE})", f"an {type(model).__name__} alone")
    if isinstance(config, HidItem):
        return model
    if not isinstance(config, SidCoordItem):
        raise ContractError("attach, config", "SidCoordItem, or HidItem to switch it off", type(config).__name__)
    owner, arch, collection = sparse_arch_of(model)
    stats = statistics.features if statistics else ()
    check_features(collection, item, history, stats, config.granularities)
    table = table_of(collection, item)
    sid_coord = SidCoord(
        catalog,
        items=table.num_embeddings,
        dim=table.embedding_dim,
        item=item,
        history=history,
        statistics=statistics,
        config=config,
        warm_start=warm_start,
        device=collection.embedding_bags[table.name].weight.device,
        data_type=table.data_type,
        first_id=first_id,
    )
    plugged = SidCoordKeyedArch if isinstance(arch, DeepFmSparseArch) else SidCoordSparseArch
    owner.sparse_arch = plugged(collection, sid_coord)
    return model


ELSE = "in another model, sidrec.plug.SidCoord goes behind its embedding collections"
"""What to do with a model that `attach` does not know."""

TABLES = (EmbeddingBagCollection, EmbeddingCollection, ShardedEmbeddingBagCollection, ShardedEmbeddingCollection)


def embedding_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The tables of all embedding collections, SID tables included: the parameters for the optimizer in backward.

    `sparse_arch.parameters()` is no replacement: it also has SID-Coord's dense layers.
    """
    collections = (module for module in model.modules() if isinstance(module, TABLES))
    return chain.from_iterable(collection.parameters() for collection in collections)


def dense_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and value of all other parameters, SID-Coord's dense layers included: for the dense optimizer.

    Use it in place of a filter by layer names, which misses SID-Coord's. For a model under DistributedModelParallel::

        KeyedOptimizerWrapper(dict(dense_parameters(model)), lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
    """
    tables = {id(parameter) for parameter in embedding_parameters(model)}
    return ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in tables)


def load_without_sids(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads the state dict of the same model without SID-Coord; SID-Coord's own parameters keep their values.

    Raises ContractError, before anything is loaded, for missing or unknown keys.
    """
    wrapped = isinstance(model, DistributedModelParallel | DistributedDataParallel)
    bare = model.get_submodule("module") if wrapped else model
    own = tuple(f"{name}." for name, module in bare.named_modules() if isinstance(module, SidCoord))
    expected = {key for key in model.state_dict() if not key.startswith(own)} if own else set(model.state_dict())
    missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or unknown:
        got = f"missing {missing[:3]}, unknown {unknown[:3]}"
        raise ContractError("state dict", f"the {len(expected)} keys of the model without SID-Coord", got)
    model.load_state_dict(dict(state), strict=False)


# What the model must have, and must not have.


def sparse_arch_of(model: nn.Module) -> tuple[nn.Module, nn.Module, EmbeddingBagCollection]:
    """The module with a `sparse_arch`, that sparse_arch, and its collection.

    Raises ContractError if there is not exactly one, or if it has other children than an `embedding_bag_collection`.
    """
    where = type(model).__name__
    owners = [module for module in model.modules() if isinstance(getattr(module, "sparse_arch", None), nn.Module)]
    if len(owners) != 1:
        expected = f"one module with a sparse_arch, as the models of torchrec.models have ({ELSE})"
        raise ContractError(where, expected, f"{len(owners)}")
    arch = owners[0].sparse_arch
    assert isinstance(arch, nn.Module), "selected above"
    children = dict(arch.named_children())
    collection = children.pop("embedding_bag_collection", None)
    if not isinstance(collection, EmbeddingBagCollection) or children:
        got = ", ".join(f"{name}: {type(child).__name__}" for name, child in arch.named_children()) or "nothing"
        expected = f"an embedding_bag_collection of tables and nothing else ({ELSE})"
        raise ContractError(f"{where}, sparse_arch", expected, got)
    return owners[0], arch, collection


def table_of(collection: EmbeddingBagCollection, feature: str) -> EmbeddingBagConfig:
    """The table that a feature is read from. Raises ContractError if there is not exactly one."""
    tables = [table for table in collection.embedding_bag_configs() if feature in table.feature_names]
    if len(tables) != 1:
        names = sorted({name for table in collection.embedding_bag_configs() for name in table.feature_names})
        got = f"{len(tables)} of them" if tables else f"features {names}{did_you_mean(feature, names)}"
        raise ContractError(f"embedding_bag_collection, feature {feature}", f"one table that reads it ({ELSE})", got)
    return tables[0]


def check_features(
    collection: EmbeddingBagCollection,
    item: str,
    history: str | None,
    stat_features: Sequence[str],
    granularities: Sequence[str],
) -> None:
    """Raises ContractError for the first reason why the collection cannot be given SIDs."""
    tables = collection.embedding_bag_configs()
    table = table_of(collection, item)
    for other in tables:
        if other.embedding_dim != table.embedding_dim:
            expected = f"the width of the item's table {table.name}, {table.embedding_dim} ({ELSE})"
            raise ContractError(f"embedding_bag_collection, table {other.name}", expected, other.embedding_dim)
    if history is not None and table_of(collection, history).num_embeddings != table.num_embeddings:
        expected = f"a table of {table.num_embeddings} rows as {item} has, for the same ids ({ELSE})"
        got = f"{table_of(collection, history).num_embeddings} rows"
        raise ContractError(f"embedding_bag_collection, feature {history}", expected, got)
    taken = {table.name for table in tables} | {name for table in tables for name in table.feature_names}
    for name in granularities:
        if name in taken:
            raise ContractError("embedding_bag_collection", "no table or feature called as a granularity", name)
    for name in stat_features:
        if name in taken:
            raise ContractError(f"embedding_bag_collection, feature {name}", "no table that reads statistics", "one")


# TorchRec's sparse architectures with SID-Coord, with the same results for the rest of the model. Both keep the
# collection under its old name, so that the keys of old checkpoints stay valid.


class SidCoordSparseArch(nn.Module):
    """Replaces torchrec.models.dlrm.SparseArch in DLRM, DLRM_DCN and DLRM_Projection."""

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
    """Replaces torchrec.models.deepfm.SparseArch in SimpleDeepFMNN."""

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection, sid_coord: SidCoord) -> None:
        super().__init__()
        self.embedding_bag_collection = embedding_bag_collection
        self.sid_coord = sid_coord

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Returns [B, D] for each feature. Raises as `SidCoord.forward` does."""
        return self.sid_coord(self.embedding_bag_collection(features), features)
