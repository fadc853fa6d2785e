"""Number formats: what each key changes where it runs, and the sentences for what a device cannot do."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.types import ParameterSharding, ShardingPlan

from sidrec.checkpoint.tensor_shard import read_index
from sidrec.config import Recipe
from sidrec.config.recipe import ParallelConfig, PrecisionConfig
from sidrec.errors import ConfigError
from sidrec.parallel.precision import check_formats, check_plan
from sidrec.train.assembly import build_training, open_dataset, open_loader
from sidrec.train.run import train
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log

ON_CPU: dict[str, dict[str, Any]] = {
    "default": {},
    "fused": {"optimizer": {"dense": {"fused": True}}},
    "backbone": {"precision": {"backbone": "bfloat16"}},
    "tables": {"precision": {"tables": "float16", "rounding": "nearest"}},
    "lookups": {"precision": {"lookups": "float16"}},
    "exchange": {"precision": {"exchange": "float16", "exchange_gradients": "float16"}},
}
"""Recipe keys that a CPU can do."""


class Outputs:
    """A forward hook that keeps the types of outputs."""

    def __init__(self) -> None:
        self.types: list[torch.dtype] = []

    def __call__(self, module: Any, inputs: Any, output: Tensor) -> None:
        self.types.append(output.dtype)


def formats(rank: int, world: int, recipes: dict[str, Recipe]) -> dict[str, dict[str, Any]]:
    """Losses of a training by step, and the types that its model really uses."""
    ranks, found = joined(rank, world), {}
    for name, recipe in recipes.items():
        train(recipe, ranks)
        lines = map(json.loads, (recipe.run / "metrics.jsonl").read_text().splitlines())
        data = open_dataset(recipe, ranks)
        training = build_training(recipe, data, ranks)
        model = training.model
        batch = next(iter(open_loader(recipe, data, "test", shuffle=False, ranks=ranks).batches(0)))
        outputs = Outputs()
        model.module.backbone.register_forward_hook(outputs)
        _, (_, logits_B) = model(batch)
        found[name] = {
            "losses": [line["loss"] for line in lines if "loss" in line],
            "backbone": outputs.types,
            "fused": {bool(group.get("fused")) for group in training.optimizer.param_groups if "betas" in group},
            "logits": logits_B.dtype,
            "lookups": model.module.items(batch.items).wait().values().dtype,
            "tables": {each.dtype for key, each in model.state_dict().items() if ".embedding_bags." in key},
            "dense": {p.dtype for key, p in model.module.backbone.named_parameters()},
        }
    return found


def test_formats_that_a_cpu_has(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=400)
    by_row = {"sharding": "row_wise"}
    recipes = {name: small_recipe(tmp_path, name=name, parallel=by_row, **keys) for name, keys in ON_CPU.items()}
    (found, _) = run_on_ranks(2, formats, recipes)
    float32, float16 = torch.float32, torch.float16
    default = found["default"]
    for name, run in found.items():
        assert run["losses"] == pytest.approx(default["losses"], abs=5e-3)
        assert name in ("default", "fused") or run["losses"] != default["losses"], f"{name} has an effect"
        assert run["fused"] == {name == "fused"}
        assert run["backbone"] == [torch.bfloat16 if name == "backbone" else float32]
        assert run["tables"] == {float16 if name == "tables" else float32}
        assert run["lookups"] == (float16 if name == "lookups" else float32)
        assert (run["logits"], run["dense"]) == (float32, {float32})
    checkpoint = max((recipes["tables"].run / "checkpoints").glob("step-*"))
    saved = read_index(checkpoint).tensors
    types = {key: tensor.dtype for key, tensor in saved.items() if ".embedding_bags." in key}
    assert {dtype for key, dtype in types.items() if key.startswith("model/")} == {"F16"}
    assert {dtype for key, dtype in types.items() if key.startswith("optimizer/")} == {"F32"}


REFUSED_ON_CPU = {
    "precision.tf32: expected false on a CPU, which has no TF32, got true": PrecisionConfig(tf32=True),
    "precision.rounding: expected nearest on a CPU, whose kernels do not round stochastically, got stochastic": (
        PrecisionConfig(tables="float16")
    ),
    "precision.lookups: expected float32 or float16 on a CPU, where FBGEMM's kernels do not write bfloat16, got "
    "bfloat16": PrecisionConfig(lookups="bfloat16"),
    "precision.exchange: expected float32 or float16 on a CPU, where gloo does not exchange bfloat16, got bfloat16": (
        PrecisionConfig(exchange="bfloat16")
    ),
    "precision.exchange_gradients: expected float32 or float16 on a CPU, where gloo does not exchange bfloat16, got "
    "bfloat16": PrecisionConfig(exchange_gradients="bfloat16"),
}


@pytest.mark.parametrize("sentence", REFUSED_ON_CPU)
def test_what_a_cpu_cannot_do(sentence: str) -> None:
    check_formats(REFUSED_ON_CPU[sentence], ParallelConfig(), "cuda", (8, 0))
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}$"):
        check_formats(REFUSED_ON_CPU[sentence], ParallelConfig(), "cpu")


def test_a_prefetch_needs_a_gpu_and_tables_in_its_cache() -> None:
    prefetch = ParallelConfig(pipeline="prefetch")
    with pytest.raises(
        ConfigError, match=r"^parallel.pipeline: expected sparse_dist or plain on a CPU, .* got prefetch"
    ):
        check_formats(PrecisionConfig(), prefetch, "cpu")
    check_formats(PrecisionConfig(), prefetch, "cuda", (7, 0))
    check_plan(PrecisionConfig(), prefetch, plan("table_wise", "fused_uvm_caching"))
    with pytest.raises(ConfigError, match="a plan without tables of kernel fused_uvm_caching, got prefetch"):
        check_plan(PrecisionConfig(), prefetch, plan("table_wise", "fused"))


def plan(sharding: str, kernel: str) -> ShardingPlan:
    table = ParameterSharding(sharding, EmbeddingComputeKernel(kernel).value, ranks=[0])
    return ShardingPlan({"items": {"hid": table}})


@pytest.mark.parametrize(
    ("key", "precision"),
    [("tables", PrecisionConfig(tables="float16")), ("lookups", PrecisionConfig(lookups="float16"))],
)
def test_replicated_tables_are_float32(key: str, precision: PrecisionConfig) -> None:
    check_plan(precision, ParallelConfig(), plan("row_wise", "fused"))
    said = f"precision.{key}: expected float32 with table hid replicated by the plan, got float16; parallel.sharding"
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_plan(precision, ParallelConfig(), plan("data_parallel", "dense"))


@pytest.mark.parametrize(
    "precision", [PrecisionConfig(tf32=True), PrecisionConfig(backbone="bfloat16"), PrecisionConfig(lookups="bfloat16")]
)
def test_older_gpus_have_neither_tf32_nor_bfloat16(precision: PrecisionConfig) -> None:
    check_formats(precision, ParallelConfig(), "cuda", (9, 0))
    with pytest.raises(ConfigError, match=r"with a GPU of compute capability 7.5, below 8.0, got"):
        check_formats(precision, ParallelConfig(), "cuda", (7, 5))
