"""Adds SID-Coord to a model of torchrec.models, in place and without touching its other layers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.models.deepfm import SparseArch as DeepFmSparseArch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from sidrec.config.item import HidItem, Item, SidCoordItem, StatsGate
from sidrec.plug.sid_coord import PUBLISHED, SidCoord, SidCoordKeyedArch, SidCoordSparseArch
from sidrec.plug.statistics import Statistics
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog, load_catalog

M = TypeVar("M", bound=nn.Module)


def attach(
    model: M,
    catalog: Catalog | Path | str,
    item: str = "item_id",
    history: str | None = None,
    statistics: Statistics | None = None,
    config: Item = PUBLISHED,
    warm_start: bool = False,
) -> M:
    """Replaces the model's `sparse_arch` by one with SID-Coord in it, and returns the model.

    To be called before DistributedModelParallel. Tables on `meta` are welcome: the SID tables are then made there, and
    sharded and initialised with the model's own. Two things change in the training script: the optimizer in backward is
    for `embedding_parameters(model)`, and TrainPipelineSparseDist gets `pipeline_postproc=True` (without it the SID
    tables are looked up outside of the pipeline, with the same losses).

    model: DLRM, DLRM_DCN, DLRM_Projection, SimpleDeepFMNN, or a wrapper with one of them in it, such as DLRMTrain.
    catalog: item id -> SID, or the folder of one. Item ids are those that the feature `item` brings: rows of its table.
    item: feature of the target, one id per row. history: feature of the items that the user liked, read from a table
        with as many rows; without one there are no alignment features.
    statistics: what the gate sees of the target.
    config: what SID-Coord does; HidItem() switches it off, and leaves the model as it is.
    warm_start: the gate starts at the HID alone, so that a model with a checkpoint from before predicts as it did, and
        goes on from there. See `load_without_sids`.

    Raises ContractError, and leaves the model as it was, for a model without a sparse_arch that it knows, features that
    its tables do not read, names or widths that clash, and what `SidCoord` refuses.
    """
    if isinstance(model, DistributedModelParallel):
        raise ContractError("attach", "a model before DistributedModelParallel", "one that is sharded")
    if isinstance(config, HidItem):
        return model
    if not isinstance(config, SidCoordItem):
        raise ContractError("attach, config", "SidCoordItem, or HidItem to switch it off", type(config).__name__)
    owner, arch, collection = sparse_arch_of(model)
    stats = statistics.features if statistics else ()
    check_features(collection, item, history, stats, config.granularities)
    table = table_of(collection, item)
    sid_coord = SidCoord(
        catalog if isinstance(catalog, Catalog) else load_catalog(Path(catalog)),
        items=table.num_embeddings,
        dim=table.embedding_dim,
        item=item,
        history=history,
        statistics=statistics,
        config=_starting_at_hid(config) if warm_start else config,
        device=collection.embedding_bags[table.name].weight.device,
        data_type=table.data_type,
    )
    plugged = SidCoordKeyedArch if isinstance(arch, DeepFmSparseArch) else SidCoordSparseArch
    owner.sparse_arch = plugged(collection, sid_coord)
    return model


def _starting_at_hid(config: SidCoordItem) -> SidCoordItem:
    if not isinstance(config.gate, StatsGate):
        expected = "a gate of kind stats with warm_start, as it can start at the HID"
        raise ContractError("attach, config.gate", expected, config.gate.kind)
    return replace(config, gate=replace(config.gate, start="hid_only"))


# The model that SID-Coord is plugged into: what must be there, what must not, and whose optimizer is whose.


TABLES = (EmbeddingBagCollection, EmbeddingCollection, ShardedEmbeddingBagCollection, ShardedEmbeddingCollection)


def sparse_arch_of(model: nn.Module) -> tuple[nn.Module, nn.Module, EmbeddingBagCollection]:
    """The module with a `sparse_arch`, that sparse_arch, and its collection.

    Raises ContractError where there is none, more than one, or one that is not an `embedding_bag_collection` alone.
    """
    where = type(model).__name__
    owners = [module for module in model.modules() if isinstance(getattr(module, "sparse_arch", None), nn.Module)]
    if len(owners) != 1:
        raise ContractError(where, "one module with a sparse_arch, as the models of torchrec.models", len(owners))
    arch = owners[0].sparse_arch
    assert isinstance(arch, nn.Module), "asked for above"
    children = dict(arch.named_children())
    collection = children.pop("embedding_bag_collection", None)
    if not isinstance(collection, EmbeddingBagCollection) or children:
        got = ", ".join(f"{name}: {type(child).__name__}" for name, child in arch.named_children()) or "nothing"
        raise ContractError(f"{where}, sparse_arch", "an embedding_bag_collection of tables and nothing else", got)
    return owners[0], arch, collection


def table_of(collection: EmbeddingBagCollection, feature: str) -> EmbeddingBagConfig:
    """The table that a feature is read from. Raises ContractError where there is not exactly one."""
    tables = [table for table in collection.embedding_bag_configs() if feature in table.feature_names]
    if len(tables) != 1:
        names = sorted({name for table in collection.embedding_bag_configs() for name in table.feature_names})
        got = f"{len(tables)} of them" if tables else f"features {names}"
        raise ContractError(f"embedding_bag_collection, feature {feature}", "one table that reads it", got)
    return tables[0]


def check_features(
    collection: EmbeddingBagCollection,
    item: str,
    history: str | None,
    stat_features: Sequence[str],
    granularities: Sequence[str],
) -> None:
    """Whether the collection can be given SIDs. Raises ContractError for the first thing that is in the way."""
    tables = collection.embedding_bag_configs()
    table = table_of(collection, item)
    for other in tables:
        if other.embedding_dim != table.embedding_dim:
            expected = f"the width of the item's table {table.name}, {table.embedding_dim}"
            raise ContractError(f"embedding_bag_collection, table {other.name}", expected, other.embedding_dim)
    if history is not None and table_of(collection, history).num_embeddings != table.num_embeddings:
        expected = f"a table of {table.num_embeddings} rows as {item} has, for the same ids"
        got = f"{table_of(collection, history).num_embeddings} rows"
        raise ContractError(f"embedding_bag_collection, feature {history}", expected, got)
    taken = {table.name for table in tables} | {name for table in tables for name in table.feature_names}
    for name in granularities:
        if name in taken:
            raise ContractError("embedding_bag_collection", "no table or feature called as a granularity", name)
    for name in stat_features:
        if name in taken:
            raise ContractError(f"embedding_bag_collection, feature {name}", "no table that reads statistics", "one")


def embedding_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The tables of all embedding collections, the SID tables among them: what gets its optimizer in backward.

    The dense layers of SID-Coord belong to the optimizer of the dense layers; `sparse_arch.parameters()` has both.
    """
    collections = (module for module in model.modules() if isinstance(module, TABLES))
    return chain.from_iterable(collection.parameters() for collection in collections)


def load_without_sids(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads the state dict of the same model without SID-Coord. What is SID-Coord's own stays as it is.

    Raises ContractError, before anything is loaded, when other keys are missing or there are keys that do not belong.
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
