"""What tables take on a rank: TorchRec's estimate of weights, inputs and outputs, with the optimizer's state added.

TorchRec counts state only for optimizers fused by apply_optimizer_in_backward; ours are named by the sharder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.types import ParameterConstraints, ShardingOption, Storage
from torchrec.distributed.types import ModuleSharder, ShardingType

STATE_BYTES = 4  # FBGEMM keeps optimizer state in float32, whatever the weights' type
ROWWISE = {EmbOptimType.EXACT_ROWWISE_ADAGRAD, EmbOptimType.EMAINPLACE_ROWWISE_ADAGRAD}
ELEMENTWISE = {EmbOptimType.EXACT_ADAGRAD: 1, EmbOptimType.ADAM: 2, EmbOptimType.LAMB: 2}


@dataclass(frozen=True)
class TableBytes:
    """Bytes of one shard: its weights, and its optimizer's state with, for data_parallel, the dense gradient."""

    weights: int
    state: int


def table_bytes(option: ShardingOption, sharders: Sequence[ModuleSharder[nn.Module]]) -> list[TableBytes]:
    """Bytes of each shard of `option`."""
    optimizer = optimizer_of(option, sharders)
    sizes = [(shard.size[0], prod(shard.size)) for shard in option.shards]
    element = option.tensor.element_size()
    return [TableBytes(n * element, _state(optimizer, rows, n) + _gradient(option, n)) for rows, n in sizes]


def _state(optimizer: EmbOptimType | None, rows: int, elements: int) -> int:
    if optimizer in ROWWISE:
        return rows * STATE_BYTES
    if optimizer == EmbOptimType.PARTIAL_ROWWISE_ADAM:
        return (elements + rows) * STATE_BYTES
    return elements * ELEMENTWISE.get(optimizer, 0) * STATE_BYTES


def _gradient(option: ShardingOption, elements: int) -> int:
    return elements * option.tensor.element_size() if option.sharding_type == ShardingType.DATA_PARALLEL.value else 0


def optimizer_of(option: ShardingOption, sharders: Sequence[ModuleSharder[nn.Module]]) -> EmbOptimType | None:
    """A table's own optimizer, which its weight carries, or that of its sharder."""
    own = getattr(option.tensor, "_optimizer_kwargs", None)
    if own:
        return own[0].get("optimizer")
    for sharder in sharders:
        if isinstance(option.module[1], sharder.module_type):
            return (sharder.fused_params or {}).get("optimizer")
    return None


def in_host_memory(option: ShardingOption, device: str) -> bool:
    """Whether the table's weights and state lie in the host's memory, not in the GPU's."""
    return device == "cpu" or "uvm" in option.compute_kernel


class StatefulStorageEstimator(EmbeddingStorageEstimator):
    """EmbeddingStorageEstimator with optimizer state, where the weights are."""

    def __init__(
        self,
        topology: Topology,
        constraints: Mapping[str, ParameterConstraints],
        sharders: Sequence[ModuleSharder[nn.Module]],
    ) -> None:
        super().__init__(topology=topology, constraints=dict(constraints))
        self._sharders = sharders

    def estimate(self, sharding_options: list[ShardingOption], *arguments: Any, **named: Any) -> None:
        """Fills shard.storage."""
        super().estimate(sharding_options, *arguments, **named)
        for option in sharding_options:
            on_host = in_host_memory(option, self._topology.compute_device)
            for shard, size in zip(option.shards, table_bytes(option, self._sharders), strict=True):
                shard.storage += Storage(hbm=0, ddr=size.state) if on_host else Storage(hbm=size.state, ddr=0)
