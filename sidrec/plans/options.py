"""The layouts that each table can have, with TorchRec's estimates of their time and memory.

An option (TorchRec's ShardingOption) is one layout of one table: sharding type, kernel and shards. `enumerate_options`
lists them, the search gives their shards ranks, and `sharding_plan` makes a plan of them; `options_of` goes back.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.planners import to_sharding_plan
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    PlannerError,
    Shard,
    ShardEstimator,
    ShardingOption,
    Storage,
    Topology,
)
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ParameterSharding,
    ShardingPlan,
    ShardingType,
)

from sidrec.config import ConfigError
from sidrec.errors import NoPlanError
from sidrec.plans.hardware import Hardware
from sidrec.plans.workload import Workload

Sharders = Sequence[ModuleSharder[nn.Module]]
SHARDING_TYPES = tuple(kind.value for kind in ShardingType)
FAST_KERNELS = ("fused", "dense")
"""Kernels that keep tables in the device's own memory."""
UVM_KERNELS = ("fused_uvm_caching", "fused_uvm")
"""Kernels that keep tables in the host's memory, with and without a cache on the GPU."""
COLUMN_TYPES = {ShardingType.COLUMN_WISE.value, ShardingType.TABLE_COLUMN_WISE.value, ShardingType.GRID_SHARD.value}
"""Sharding types that split columns."""
NARROWEST_GPU_SHARD = 128  # TorchRec's own bound: FBGEMM's GPU kernels work on 128 columns
COLUMN_STEP = 4  # FBGEMM reads four columns at a time


def enumerate_options(
    workload: Workload,
    hardware: Hardware,
    sharders: Sharders,
    allowed_types: Mapping[str, Sequence[str]] | None = None,
    kernels: Sequence[str] = FAST_KERNELS,
) -> dict[str, list[ShardingOption]]:
    """Table -> its options in a fixed order; shards have estimates of time and bytes, but no ranks.

    allowed_types: table -> sharding types; tables that it does not name may have any. kernels: FBGEMM kernels to offer.
    Raises ConfigError for an unknown type or table, and if a table has no option.
    """
    allowed = {
        name: tuple(allowed_types.get(name, SHARDING_TYPES)) if allowed_types else SHARDING_TYPES
        for name in workload.tables
    }
    _check_types(workload, allowed_types or {})
    constraints = {
        name: table_constraint(workload, hardware, name, types=allowed[name], kernels=kernels)
        for name in workload.tables
    }
    options: dict[str, list[ShardingOption]] = {name: [] for name in workload.tables}
    with silenced_planner():
        try:
            enumerator = _enumerator(workload, hardware, sharders, constraints)
            found = enumerator.enumerate(workload.model, list(sharders))
        except RuntimeError as error:
            raise ConfigError(f"sharding of {workload.name} on {hardware.device}: {error}") from error
    for option in found:
        options[option.name].append(option)
    for each in options.values():
        each.sort(key=lambda option: (SHARDING_TYPES.index(option.sharding_type), option.compute_kernel))
    return options


def on_ranks(option: ShardingOption, ranks: Sequence[int]) -> ShardingOption:
    """A copy of the option with its shards on `ranks`, in order."""
    placed = copy(option)
    placed.shards = [replace(shard, rank=int(rank)) for shard, rank in zip(option.shards, ranks, strict=True)]
    return placed


def sharding_plan(options: Sequence[ShardingOption], hardware: Hardware) -> ShardingPlan:
    """The plan of placed options."""
    return to_sharding_plan(list(options), hardware.topology())


def options_of(plan: ShardingPlan, workload: Workload, hardware: Hardware, sharders: Sharders) -> list[ShardingOption]:
    """The placed options of any plan, with estimates, so that cost models can rate it.

    Raises ConfigError naming a table that the plan lacks.
    """
    layouts = _layouts(plan, workload)
    constraints = {
        name: table_constraint(
            workload,
            hardware,
            name,
            types=(layout.sharding_type,),
            kernels=(layout.compute_kernel,),
            columns=_columns(layout),
            cache=layout.cache_params,
        )
        for name, layout in layouts.items()
    }
    with silenced_planner():
        enumerator = _enumerator(workload, hardware, sharders, constraints)
        options = enumerator.enumerate(workload.model, list(sharders))
        for option in options:
            option.shards = _shards(option, layouts[option.name], hardware)
        enumerator.populate_estimates(options)
    order = list(workload.tables)
    return sorted(options, key=lambda option: order.index(option.name))


def _layouts(plan: ShardingPlan, workload: Workload) -> dict[str, ParameterSharding]:
    layouts: dict[str, ParameterSharding] = {}
    for tables in plan.plan.values():
        assert isinstance(tables, EmbeddingModuleShardingPlan), "only embedding collections are sharded"
        layouts |= dict(tables)
    for name in workload.tables:
        if name not in layouts:
            raise ConfigError(f"plan of {workload.name}: expected a layout of table {name}, found none")
    return {name: layouts[name] for name in workload.tables}


def _columns(layout: ParameterSharding) -> int | None:
    """Columns of a shard, for types that split them."""
    if layout.sharding_spec is None or layout.sharding_type not in COLUMN_TYPES:
        return None
    return int(layout.sharding_spec.shards[0].shard_sizes[1])


def _shards(option: ShardingOption, layout: ParameterSharding, hardware: Hardware) -> list[Shard]:
    """The plan's own shards, which may differ from the enumerator's."""
    if layout.sharding_spec is None:
        rows, width = option.tensor.shape
        return [Shard(size=[rows, width], offset=[0, 0], rank=rank) for rank in range(hardware.world)]
    return [
        Shard(size=list(shard.shard_sizes), offset=list(shard.shard_offsets), rank=shard.placement.rank())
        for shard in layout.sharding_spec.shards
    ]


# What TorchRec's planner gets: constraints, an enumerator, estimators.


def table_constraint(
    workload: Workload,
    hardware: Hardware,
    name: str,
    types: Sequence[str] = SHARDING_TYPES,
    kernels: Sequence[str] = FAST_KERNELS,
    columns: int | None = None,
    cache: CacheParams | None = None,
) -> ParameterConstraints:
    """How the table is read, and the layouts that it may have. columns: of a shard; None: `column_width`."""
    load = workload.loads[name]
    features = len(load.ids_per_bag)
    return ParameterConstraints(
        sharding_types=list(types),
        compute_kernels=list(kernels),
        min_partition=columns or column_width(workload.tables[name].embedding_dim, hardware),
        pooling_factors=list(load.ids_per_bag),
        num_poolings=[1.0] * features,
        batch_sizes=[load.bags] * features,
        cache_params=cache,
    )


def column_width(width: int, hardware: Hardware) -> int:
    """Columns of a shard of a table that is split by columns.

    On GPUs as TorchRec splits: 128, or the next multiple of four that divides the width. On CPU, whose kernels have no
    preferred width, every rank gets a shard if the columns can be split in multiples of four.
    """
    per_rank = max(COLUMN_STEP, -(-width // hardware.world))
    wanted = per_rank if hardware.device == "cpu" else NARROWEST_GPU_SHARD
    return next((w for w in range(wanted, width) if width % w == 0 and w % COLUMN_STEP == 0), width)


def _check_types(workload: Workload, allowed_types: Mapping[str, Sequence[str]]) -> None:
    for table, types in allowed_types.items():
        if table not in workload.tables:
            raise ConfigError(f"sharding types of table {table}: expected one of {', '.join(workload.tables)}")
        for kind in types:
            if kind not in SHARDING_TYPES:
                expected = f"expected one of {', '.join(SHARDING_TYPES)}, got {kind!r}"
                raise ConfigError(f"sharding type of table {table}: {expected}")


class OrderedEnumerator(EmbeddingEnumerator):
    """Enumerates options in the same order in every process.

    TorchRec takes sharding types and kernels from sets of strings, whose order differs between processes, and its
    planner takes the first of equally cheap options. A recipe that is run again would get another plan, and with it
    sums in another order.
    """

    def _filter_sharding_types(self, *arguments: Any, **named: Any) -> list[str]:
        types = super()._filter_sharding_types(*arguments, **named)
        return sorted(types, reverse=True)  # table_wise before column_wise

    def _filter_compute_kernels(self, *arguments: Any, **named: Any) -> list[str]:
        return sorted(super()._filter_compute_kernels(*arguments, **named), reverse=True)  # fused before dense


def _enumerator(
    workload: Workload, hardware: Hardware, sharders: Sharders, constraints: dict[str, ParameterConstraints]
) -> OrderedEnumerator:
    topology = hardware.topology()
    return OrderedEnumerator(
        topology=topology,
        batch_size=workload.rows_per_rank,
        constraints=constraints,
        estimator=[
            OncePerSize(EmbeddingPerfEstimator(topology, constraints)),
            OncePerSize(StatefulStorageEstimator(topology, constraints, sharders)),
        ],
    )


class OncePerSize(ShardEstimator):
    """Estimates shards of one option that have the same size once.

    A table in 128 equal shards is estimated once instead of 128 times, which makes planning several times faster.
    """

    def __init__(self, estimator: ShardEstimator) -> None:
        self._estimator = estimator

    def estimate(self, sharding_options: list[ShardingOption], *arguments: Any, **named: Any) -> None:
        """Fills shard.perf or shard.storage, as `estimator` does."""
        all_shards = [option.shards for option in sharding_options]
        by_size: list[dict[tuple[int, ...], Shard]] = []
        try:
            for option in sharding_options:
                by_size.append({tuple(shard.size): shard for shard in reversed(option.shards)})
                option.shards = list(by_size[-1].values())
            self._estimator.estimate(sharding_options, *arguments, **named)
        finally:
            for option, shards in zip(sharding_options, all_shards, strict=True):
                option.shards = shards
        for shards, estimated in zip(all_shards, by_size, strict=True):
            for shard in shards:
                first = estimated[tuple(shard.size)]
                shard.perf, shard.storage = first.perf, first.storage


@contextmanager
def silenced_planner() -> Iterator[None]:
    """Disables logging below CRITICAL: TorchRec's planner logs a line per table, some to the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


# The memory that tables need: weights, optimizer state, and TorchRec's estimate of inputs and outputs.

STATE_BYTES = 4  # FBGEMM keeps optimizer state in float32 for every type of weights
ROWWISE = {EmbOptimType.EXACT_ROWWISE_ADAGRAD, EmbOptimType.EMAINPLACE_ROWWISE_ADAGRAD}
ELEMENTWISE = {EmbOptimType.EXACT_ADAGRAD: 1, EmbOptimType.ADAM: 2, EmbOptimType.LAMB: 2}
"""Optimizer -> values of state per weight."""


@dataclass(frozen=True)
class TableBytes:
    """Bytes of one shard: weights, and optimizer state with, for data_parallel, the dense gradient."""

    weights: int
    state: int


def table_bytes(option: ShardingOption, sharders: Sharders) -> list[TableBytes]:
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


def optimizer_of(option: ShardingOption, sharders: Sharders) -> EmbOptimType | None:
    """The optimizer set on the table's weight, or else its sharder's."""
    own = getattr(option.tensor, "_optimizer_kwargs", None)
    if own:
        return own[0].get("optimizer")
    for sharder in sharders:
        if isinstance(option.module[1], sharder.module_type):
            return (sharder.fused_params or {}).get("optimizer")
    return None


def in_host_memory(option: ShardingOption, device: str) -> bool:
    """Whether weights and state are in host memory, not in GPU memory."""
    return device == "cpu" or "uvm" in option.compute_kernel


class StatefulStorageEstimator(EmbeddingStorageEstimator):
    """EmbeddingStorageEstimator plus optimizer state.

    TorchRec counts state only for optimizers fused by apply_optimizer_in_backward; here the sharder names them.
    """

    def __init__(self, topology: Topology, constraints: Mapping[str, ParameterConstraints], sharders: Sharders) -> None:
        super().__init__(topology=topology, constraints=dict(constraints))
        self._sharders = sharders

    def estimate(self, sharding_options: list[ShardingOption], *arguments: Any, **named: Any) -> None:
        """Fills shard.storage."""
        super().estimate(sharding_options, *arguments, **named)
        for option in sharding_options:
            on_host = in_host_memory(option, self._topology.compute_device)
            for shard, size in zip(option.shards, table_bytes(option, self._sharders), strict=True):
                shard.storage += Storage(hbm=0, ddr=size.state) if on_host else Storage(hbm=size.state, ddr=0)


# The memory that tables may use: a rank's, less TorchRec's reservation.

MARGIN = 0.15
"""Share of GPU memory that is kept free, as TorchRec's planner does."""


def reservation() -> HeuristicalStorageReservation:
    """TorchRec's default: MARGIN, six times the dense parameters, and twenty times a batch's ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return HeuristicalStorageReservation(percentage=MARGIN)


def table_memory(workload: Workload, hardware: Hardware, sharders: Sharders) -> Storage:
    """Bytes of one rank that are left for tables. Raises NoPlanError if the reservation alone does not fit."""
    constraints = {name: table_constraint(workload, hardware, name) for name in workload.tables}
    with silenced_planner():
        try:
            topology: Topology = reservation().reserve(
                topology=hardware.topology(),
                batch_size=workload.rows_per_rank,
                module=workload.model,
                sharders=list(sharders),
                constraints=constraints,
            )
        except PlannerError:
            topology = None
    left = topology.devices[0].storage if topology else Storage(hbm=-1, ddr=0)
    if left.hbm < 0 or left.ddr < 0:
        raise NoPlanError(_nothing_left(workload, hardware))
    return left


def _nothing_left(workload: Workload, hardware: Hardware) -> str:
    cap = hardware.ddr if hardware.device == "cpu" else hardware.hbm
    ids = sum(load.bags * sum(load.ids_per_bag) for load in workload.loads.values())
    return (
        f"memory of a rank of {hardware.name}: expected more than is reserved for the dense layers "
        f"({6 * 4 * workload.dense_parameters:,} bytes) and the batches ({20 * 8 * ids:,.0f} bytes), got {cap:,} bytes "
        "in all; use fewer rows per step or more memory"
    )
