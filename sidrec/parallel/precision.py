"""From the recipe's number formats to those of FBGEMM, TorchRec and torch; and what a device cannot do.

Everything is float32 unless the recipe says otherwise.
"""

from collections.abc import Iterator
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import QuantizedCommCodecs, ShardingPlan, ShardingType

from sidrec.config.recipe import ParallelConfig, PrecisionConfig
from sidrec.errors import ConfigError

OF_LOOKUPS = {"float16": SparseType.FP16, "bfloat16": SparseType.BF16}
OF_EXCHANGE = {"float32": CommType.FP32, "float16": CommType.FP16, "bfloat16": CommType.BF16}
AMPERE = 8, 0
"""Compute capability of the first GPUs with TF32 and bfloat16."""


def table_params(precision: PrecisionConfig, parallel: ParallelConfig) -> dict[str, Any]:
    """FBGEMM's arguments for the tables' formats, in addition to those of their optimizer."""
    found: dict[str, Any] = {}
    if precision.tables != "float32":
        found["stochastic_rounding"] = precision.rounding == "stochastic"
    if precision.lookups != "float32":
        found["output_dtype"] = OF_LOOKUPS[precision.lookups]
    if parallel.pipeline == "prefetch":
        found["prefetch_pipeline"] = True
    return found


def exchange_codecs(precision: PrecisionConfig, device: torch.device) -> dict[str, QuantizedCommCodecs] | None:
    """How embeddings and their gradients are encoded between ranks; None: as they are."""
    forward, backward = OF_EXCHANGE[precision.exchange], OF_EXCHANGE[precision.exchange_gradients]
    config = QCommsConfig(forward_precision=forward, backward_precision=backward)
    return get_qcomm_codecs_registry(config, device=device)


def set_matrix_products(precision: PrecisionConfig) -> None:
    """With `tf32`, this process multiplies matrices of float32 as TF32 on its GPU."""
    if precision.tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def check_formats(
    precision: PrecisionConfig, parallel: ParallelConfig, device: str, capability: tuple[int, int] | None = None
) -> None:
    """Raises ConfigError for the first key that asks for what the device cannot do.

    device: cpu or cuda. capability: compute capability of the GPU.
    """
    refused = _refused_on_cpu(precision, parallel) if device == "cpu" else _refused_on_gpu(precision, capability)
    for key, expected, got in refused:
        raise ConfigError(f"{key}: expected {expected}, got {got}")


Refused = Iterator[tuple[str, str, str]]
"""A key, what is expected, and what the recipe has."""


def _refused_on_cpu(precision: PrecisionConfig, parallel: ParallelConfig) -> Refused:
    if precision.tf32:
        yield "precision.tf32", "false on a CPU, which has no TF32", "true"
    if precision.tables == "float16" and precision.rounding == "stochastic":
        yield "precision.rounding", "nearest on a CPU, whose kernels do not round stochastically", "stochastic"
    reasons = {
        "lookups": "FBGEMM's kernels do not write bfloat16",
        "exchange": "gloo does not exchange bfloat16",
        "exchange_gradients": "gloo does not exchange bfloat16",
    }
    for key, reason in reasons.items():
        if getattr(precision, key) == "bfloat16":
            yield f"precision.{key}", f"float32 or float16 on a CPU, where {reason}", "bfloat16"
    if parallel.pipeline == "prefetch":
        expected = "sparse_dist or plain on a CPU, whose tables lie in host memory and need no cache"
        yield "parallel.pipeline", expected, "prefetch"


def _refused_on_gpu(precision: PrecisionConfig, capability: tuple[int, int] | None) -> Refused:
    if capability is None or capability >= AMPERE:
        return
    older = f"with a GPU of compute capability {capability[0]}.{capability[1]}, below {AMPERE[0]}.{AMPERE[1]}"
    if precision.tf32:
        yield "precision.tf32", f"false {older}", "true"
    for key in ("backbone", "lookups", "exchange", "exchange_gradients"):
        if getattr(precision, key) == "bfloat16":
            yield f"precision.{key}", f"another type {older}", "bfloat16"


def check_plan(precision: PrecisionConfig, parallel: ParallelConfig, plan: ShardingPlan) -> None:
    """Raises ConfigError for formats of tables that the plan replicates, and for a prefetch that has no cache to fill.

    A replicated table learns by torch's optimizer, which keeps its state in the table's own type.
    """
    tables = {name: each for module in plan.plan.values() for name, each in module.items()}
    replicated = next(
        (name for name, each in tables.items() if each.sharding_type == ShardingType.DATA_PARALLEL.value), None
    )
    for key in ("tables", "lookups"):
        value = getattr(precision, key)
        if value != "float32" and replicated is not None:
            expected = f"float32 with table {replicated} replicated by the plan"
            raise ConfigError(f"precision.{key}: expected {expected}, got {value}; parallel.sharding names others")
    cached = EmbeddingComputeKernel.FUSED_UVM_CACHING.value
    if parallel.pipeline == "prefetch" and all(each.compute_kernel != cached for each in tables.values()):
        expected = f"sparse_dist or plain with a plan without tables of kernel {cached}"
        raise ConfigError(f"parallel.pipeline: expected {expected}, got prefetch")
