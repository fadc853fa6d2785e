"""SID-Coord in host models that run in mixed or half precision."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional
from torchrec.modules.embedding_configs import DataType

from sidrec.config.item import SidCoordItem
from sidrec.config.item_parts import (
    BucketizedStats,
    ConcatMlpFusion,
    ConcatProjectFusion,
    HistogramAlignment,
    MatchStatsAlignment,
    MeanFusion,
    MeanGate,
    NoAlignment,
    QueryFusion,
    RawStatsAlignment,
    StatsGate,
    SumGate,
)
from sidrec.plug import SidCoord
from tests.plug.hosts import DENSE, DIM, ITEMS, MODELS, batch, catalog, counts, plugged, tables

CONFIGS: dict[str, SidCoordItem] = {
    "published": SidCoordItem(),
    "residual": SidCoordItem(gate=StatsGate(form="residual", lengths="equal"), alignment=RawStatsAlignment()),
    "per dimension": SidCoordItem(gate=StatsGate(per_dimension=True), fusion=QueryFusion()),
    "buckets": SidCoordItem(gate=StatsGate(stats=BucketizedStats()), alignment=HistogramAlignment()),
    "mean": SidCoordItem(gate=MeanGate(), fusion=MeanFusion(), alignment=NoAlignment()),
    "sum": SidCoordItem(gate=SumGate(), fusion=ConcatMlpFusion(), alignment=MatchStatsAlignment()),
    "projection": SidCoordItem(fusion=ConcatProjectFusion()),
}


def step(model: torch.nn.Module, dtype: torch.dtype | None) -> torch.Tensor:
    """Logits [B, 1], after a backward pass through them."""
    rows = batch()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        logits = model(rows.dense_features, rows.sparse_features)
    functional.binary_cross_entropy_with_logits(logits.squeeze().float(), rows.labels).backward()
    return logits.detach()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_autocast_changes_rounding_alone(config: SidCoordItem, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact = plugged(MODELS["DLRM"](), config=config)
    mixed = copy.deepcopy(exact)
    torch.testing.assert_close(step(mixed, dtype).float(), step(exact, None), atol=0.02, rtol=0.02)
    for (name, found), (_, expected) in zip(mixed.named_parameters(), exact.named_parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None), name
        if found.grad is not None:
            assert found.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_under_autocast(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert step(plugged(MODELS[name]()), dtype).isfinite().all()


def test_autocast_leaves_the_layers_as_exact_as_they_are() -> None:
    """The item's embedding of a float32 collection is the same bit by bit."""
    torch.manual_seed(0)
    model, rows = plugged(MODELS["DLRM"]()), batch()
    arch = model.get_submodule("sparse_arch")
    exact = arch(rows.sparse_features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(arch(rows.sparse_features), exact)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_layers_of_half_precision(config: SidCoordItem) -> None:
    """A module as a whole in bfloat16, in a host whose embeddings are so too: e has their type."""
    torch.manual_seed(0)
    exact = SidCoord(catalog(), ITEMS, DIM, "item_id", "history", counts(), config, alignment_key="alignment")
    rows = batch().sparse_features
    hid_BD = torch.randn(rows.stride(), DIM)
    expected = exact.target(hid_BD, rows)
    found = copy.deepcopy(exact).to(torch.bfloat16).target(hid_BD.bfloat16(), rows)
    assert (found[0].dtype, found[1].dtype) == (torch.bfloat16, torch.bfloat16)
    for half, full in zip(found, expected, strict=True):
        torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("data_type", [DataType.FP16, DataType.BF16])
def test_tables_of_half_precision(data_type: DataType) -> None:
    """Collections whose tables, and so whose embeddings, are of half precision, with layers of float32."""
    from torchrec.models.dlrm import DLRM

    torch.manual_seed(0)
    collection: Any = tables()
    configs = [dataclasses.replace(table, data_type=data_type) for table in collection.embedding_bag_configs()]
    host = DLRM(type(collection)(tables=configs), DENSE, [16, DIM], [16, 1])
    model, rows = plugged(host), batch()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(rows.dense_features, rows.sparse_features)
    assert logits.isfinite().all()
    logits.float().sum().backward()
