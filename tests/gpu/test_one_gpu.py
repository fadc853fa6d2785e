"""One GPU does what a CPU does: training, pipeline, number formats, checkpoints, tables, and plugged models.

Every test runs on a CPU too, where it compares the CPU with itself: its body is known to work before a GPU runs it.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from sidrec.checkpoint.tensor_shard import StagingBuffers, whole_tensor
from sidrec.config import Recipe
from sidrec.config.item import SidCoordItem
from sidrec.parallel.initial_values import initial_rows
from sidrec.parallel.process_group import Ranks, joined_ranks
from sidrec.plug.sid_join import SidJoin, catalog_rows
from sidrec.train.evaluate_run import evaluate_run
from sidrec.train.run import train
from tests.plug.hosts import ITEMS, batch, catalog, counts, plugged, train_dlrm
from tests.plug.training import sharded, train_in_pipeline
from tests.small_log import small_recipe, write_small_log
from tests.stopped_trainer import StoppedError, stopped_at

GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none"),
    ],
)
on_both = pytest.mark.parametrize("device", ["cpu", GPU])


def assert_near(found: Any, expected: Any, rtol: float = 2e-3, atol: float = 2e-4) -> None:
    """Kernels of GPUs add in another order, and Adam's first steps divide by small numbers."""
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


@contextmanager
def ranks_on(device: str) -> Iterator[Ranks]:
    """One rank on the device, as `sidrec train` joins it."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setenv("SIDREC_DEVICE", device)
        with joined_ranks() as ranks:
            assert ranks.device.type == device
            yield ranks


def trained(recipe: Recipe, device: str) -> tuple[list[float], np.ndarray]:
    """Losses by step, and scores of the test split by row."""
    with ranks_on(device) as ranks:
        assert train(recipe, ranks) == 0
    return losses(recipe), scores(recipe)


def losses(recipe: Recipe) -> list[float]:
    lines = map(json.loads, (recipe.run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def scores(recipe: Recipe) -> np.ndarray:
    return pq.read_table(recipe.run / "predictions_test.parquet")["score"].to_numpy()


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """Makes a recipe for a small log."""
    write_small_log(tmp_path, rows=500)

    def made(name: str, **sections: Any) -> Recipe:
        length = {"epochs": 1, "log_every": 1, **sections.pop("train", {})}
        return small_recipe(tmp_path, name=name, train=length, **sections)

    return made


MODELS: dict[str, dict[str, Any]] = {
    "sid_coord": {},
    "hid": {"model": {"item": {"kind": "hid"}}},
    "attention": {"model": {"history_pooling": {"kind": "target_attention"}}},
    "updates": {"model": {"item": {"kind": "sid_coord", "gate": {"kind": "stats", "updates": True}}}},
    "managed": {"model": {"item": {"kind": "hid", "hid_index": {"kind": "managed_collision", "rows": 40}}}},
    "rowwise": {"optimizer": {"tables": {"kind": "rowwise_adagrad"}}},
    "workers": {"data": {"workers": 1}},
}


@on_both
@pytest.mark.parametrize("name", MODELS)
def test_training_equals_a_cpu_s(name: str, device: str, recipe: Callable[..., Recipe]) -> None:
    expected, expected_N = trained(recipe("cpu", **MODELS[name]), "cpu")
    found, found_N = trained(recipe("device", **MODELS[name]), device)
    assert len(set(expected)) == len(expected) > 5
    assert_near(found, expected)
    assert_near(found_N, expected_N, rtol=0.02)


@on_both
def test_the_pipeline_equals_a_plain_loop(device: str, recipe: Callable[..., Recipe]) -> None:
    kinds = "plain", "sparse_dist"
    plain, pipelined = (trained(recipe(kind, parallel={"pipeline": kind}), device) for kind in kinds)
    assert_near(pipelined[0], plain[0])
    assert_near(pipelined[1], plain[1], rtol=0.02)


FORMATS: dict[str, dict[str, Any]] = {
    "backbone": {"backbone": "bfloat16"},
    "tf32": {"tf32": True},
    "tables": {"tables": "float16"},
    "lookups": {"lookups": "bfloat16"},
    "nearest": {"tables": "float16", "rounding": "nearest"},
}
ON_CPU = "backbone", "nearest"


@pytest.mark.parametrize(
    ("name", "device"),
    [*((name, "cpu") for name in ON_CPU), *(pytest.param(name, "cuda", marks=GPU.marks) for name in FORMATS)],
)
def test_number_formats(name: str, device: str, recipe: Callable[..., Recipe]) -> None:
    expected, _ = trained(recipe("float32"), device)
    found, _ = trained(recipe(name, precision=FORMATS[name]), device)
    assert found != expected
    assert_near(found, expected, atol=0.01)


@on_both
def test_a_resumed_run_equals_one_that_was_not(device: str, recipe: Callable[..., Recipe]) -> None:
    saved = {"every": 3, "background": False}
    whole, whole_N = trained(recipe("whole", checkpoint=saved), device)
    with pytest.raises(StoppedError), ranks_on(device) as ranks:
        train(recipe("resumed", checkpoint=saved), ranks, stopped_at(4))
    resumed, resumed_N = trained(recipe("resumed", checkpoint=saved), device)
    assert len(resumed) == len(whole) > 4
    assert_near(resumed, whole)
    assert_near(resumed_N, whole_N, rtol=0.02)


@on_both
def test_a_checkpoint_scores_alike_on_a_cpu(device: str, recipe: Callable[..., Recipe]) -> None:
    run = recipe("run", checkpoint={"every": 3})
    _, found_N = trained(run, device)
    with ranks_on("cpu") as ranks:
        evaluate_run(run.run, (), None, ranks)
    assert_near(scores(run), found_N)


@on_both
def test_copies_of_a_checkpoint(device: str) -> None:
    shards = [whole_tensor(f"{rows}", torch.randn(rows, 5, device=device)[:, 1:4]) for rows in (1, 1000, 70_001)]
    expected = [shard.values.cpu() for shard in shards]
    staging = StagingBuffers()
    for _ in range(2):
        copies = staging.take(shards)
        assert all(torch.equal(copy.values, values) for copy, values in zip(copies, expected, strict=True))
        assert {copy.values.is_pinned() for copy in copies} == {device == "cuda"}


@on_both
def test_initial_values_are_a_cpu_s_to_the_last_bit(device: str) -> None:
    table = EmbeddingBagConfig(name="t", num_embeddings=10**9, embedding_dim=12, feature_names=["t"])
    for first, count in ((0, 1000), (3, 77), (10**9 - 5, 5)):
        found_ND = initial_rows(7, table, first, count, torch.device(device))
        assert found_ND.device.type == device
        assert torch.equal(found_ND.cpu(), initial_rows(7, table, first, count))


@on_both
@pytest.mark.parametrize("history", ["history", None])
def test_sids_are_joined_as_on_a_cpu(history: str | None, device: str) -> None:
    join = SidJoin(catalog_rows(catalog(), SidCoordItem(), ITEMS), "item_id", history, counts())
    features = batch(rows=300).sparse_features
    expected = join(features, False)
    found = join.to(device)(features.to(torch.device(device)), False)
    for name, of_cpu, of_device in zip(expected._fields, expected, found, strict=True):
        parts = ("values", "lengths") if name == "granules" else ("clone",)
        assert all(torch.equal(getattr(of_device, part)().cpu(), getattr(of_cpu, part)()) for part in parts), name


def plugged_logits(device: str, pipelined: bool) -> list[Tensor]:
    """Of every step of a plugged DLRM, in TorchRec's pipeline on the device; or of one without tables' shards."""
    with ranks_on(device) as ranks:
        model, optimizer = sharded(plugged(train_dlrm()), 1, "table_wise", ranks.device)
        logits, collections = train_in_pipeline(model, optimizer, 0, 1, pipelined, ranks.device)
    assert collections == (2 if pipelined else 1)
    return [logits_B.cpu() for logits_B in logits]


@on_both
def test_a_plugged_model_trains_as_on_a_cpu(device: str) -> None:
    expected = plugged_logits("cpu", True)
    for pipelined in (True, False):
        for found_B, expected_B in zip(plugged_logits(device, pipelined), expected, strict=True):
            assert_near(found_B, expected_B)
