"""Adds SID-Coord to a model of torchrec.models, in place and without touching its other layers."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.models.deepfm import SparseArch as DeepFmSparseArch

from sidrec.config.gate import StatsGate
from sidrec.config.item import HidItem, Item, SidCoordItem
from sidrec.plug.host import check_features, sparse_arch_of, table_of
from sidrec.plug.sid_coord import PUBLISHED, SidCoord
from sidrec.plug.sparse_arch import SidCoordKeyedArch, SidCoordSparseArch
from sidrec.plug.statistics import StatFeatures, Statistics
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
    stats = statistics.names if isinstance(statistics, StatFeatures) else ()
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
