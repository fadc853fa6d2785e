"""The ways each table can be laid over ranks, with TorchRec's estimates; and plans from them and back."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any

from torch import nn
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.planners import to_sharding_plan
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import PlannerError, Shard, ShardEstimator, ShardingOption, Storage, Topology
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
from sidrec.plans.memory import StatefulStorageEstimator
from sidrec.plans.workload import Workload

Sharders = Sequence[ModuleSharder[nn.Module]]
TYPES = tuple(kind.value for kind in ShardingType)
FAST_KERNELS = ("fused", "dense")
"""Kernels that keep tables in the device's own memory."""
UVM_KERNELS = ("fused_uvm_caching", "fused_uvm")
"""Kernels that keep tables in the host's memory, with and without a cache on the GPU."""
SPLIT = {ShardingType.COLUMN_WISE.value, ShardingType.TABLE_COLUMN_WISE.value, ShardingType.GRID_SHARD.value}
NARROWEST_GPU_SHARD = 128  # TorchRec's own bound: FBGEMM's kernels want 128 columns
COLUMN_STEP = 4  # FBGEMM reads four columns at a time


def enumerate_options(
    workload: Workload,
    hardware: Hardware,
    sharders: Sharders,
    allowed_types: Mapping[str, Sequence[str]] | None = None,
    kernels: Sequence[str] = FAST_KERNELS,
) -> dict[str, list[ShardingOption]]:
    """Table -> its options in a fixed order, shards without ranks, with TorchRec's estimates of time and bytes.

    allowed_types: table -> sharding types; every type for a table that is not named. kernels: FBGEMM kernels to offer.
    Raises ConfigError for an unknown type or table, and for a table that no type and kernel is left for.
    """
    allowed = {name: tuple(allowed_types.get(name, TYPES)) if allowed_types else TYPES for name in workload.tables}
    _check_types(workload, allowed_types or {})
    constraints = {
        name: table_constraint(workload, hardware, name, types=allowed[name], kernels=kernels)
        for name in workload.tables
    }
    options: dict[str, list[ShardingOption]] = {name: [] for name in workload.tables}
    for option in _enumerated(workload, hardware, sharders, constraints):
        options[option.name].append(option)
    for found in options.values():
        found.sort(key=lambda option: (TYPES.index(option.sharding_type), option.compute_kernel))
    return options


def placed(option: ShardingOption, ranks: Sequence[int]) -> ShardingOption:
    """The option with its shards on `ranks`, in their order; the one given stays without."""
    there = copy(option)
    there.shards = [replace(shard, rank=int(rank)) for shard, rank in zip(option.shards, ranks, strict=True)]
    return there


def sharding_plan(options: Sequence[ShardingOption], hardware: Hardware) -> ShardingPlan:
    """TorchRec's plan of placed options."""
    return to_sharding_plan(list(options), hardware.topology())


def options_of(plan: ShardingPlan, workload: Workload, hardware: Hardware, sharders: Sharders) -> list[ShardingOption]:
    """The placed options of any plan, with TorchRec's estimates, so that every plan can be rated.

    Raises ConfigError naming the table that the plan lacks.
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
    with quiet():
        enumerator = _enumerator(workload, hardware, sharders, constraints)
        options = enumerator.enumerate(workload.model, list(sharders))
        for option in options:
            option.shards = _shards(option, layouts[option.name], hardware)
        enumerator.populate_estimates(options)
    order = list(workload.tables)
    return sorted(options, key=lambda option: order.index(option.name))


def column_width(width: int, hardware: Hardware) -> int:
    """Columns of one shard where a table is split by columns.

    On GPUs, as TorchRec splits: 128, or less for a table that no multiple of four from 128 on divides. On CPU no
    kernel asks for width, so a table gives every rank a shard if its columns can be dealt in steps of four.
    """
    on_cpu = max(COLUMN_STEP, -(-width // hardware.world))
    wanted = on_cpu if hardware.device == "cpu" else NARROWEST_GPU_SHARD
    return next((w for w in range(wanted, width) if width % w == 0 and w % COLUMN_STEP == 0), width)


def _check_types(workload: Workload, allowed_types: Mapping[str, Sequence[str]]) -> None:
    for table, types in allowed_types.items():
        if table not in workload.tables:
            raise ConfigError(f"sharding types of table {table}: expected one of {', '.join(workload.tables)}")
        for kind in types:
            if kind not in TYPES:
                raise ConfigError(f"sharding type of table {table}: expected one of {', '.join(TYPES)}, got {kind!r}")


def table_constraint(
    workload: Workload,
    hardware: Hardware,
    name: str,
    types: Sequence[str] = TYPES,
    kernels: Sequence[str] = FAST_KERNELS,
    columns: int | None = None,
    cache: CacheParams | None = None,
) -> ParameterConstraints:
    """What TorchRec's planner is told of a table: how it is read, and what is allowed. columns: of a shard."""
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


def _enumerated(
    workload: Workload, hardware: Hardware, sharders: Sharders, constraints: dict[str, ParameterConstraints]
) -> list[ShardingOption]:
    with quiet():
        try:
            return _enumerator(workload, hardware, sharders, constraints).enumerate(workload.model, list(sharders))
        except RuntimeError as error:
            raise ConfigError(f"sharding of {workload.name} on {hardware.device}: {error}") from error


# TorchRec's options of a table in an order that every process finds alike.


class OrderedEnumerator(EmbeddingEnumerator):
    """TorchRec takes sharding types and kernels out of sets of strings, whose order Python draws anew in each process,
    and its planner takes the first of equally cheap options: the same recipe, started again, would get another plan,
    and with it sums in another order."""

    def _filter_sharding_types(self, *arguments: Any, **named: Any) -> list[str]:
        return sorted(
            super()._filter_sharding_types(*arguments, **named), reverse=True
        )  # table_wise before column_wise

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
    if layout.sharding_spec is None or layout.sharding_type not in SPLIT:
        return None
    return int(layout.sharding_spec.shards[0].shard_sizes[1])


def _shards(option: ShardingOption, layout: ParameterSharding, hardware: Hardware) -> list[Shard]:
    """The plan's own shards: what an enumerator would cut is not always what a plan holds."""
    if layout.sharding_spec is None:
        rows, width = option.tensor.shape
        return [Shard(size=[rows, width], offset=[0, 0], rank=rank) for rank in range(hardware.world)]
    return [
        Shard(size=list(shard.shard_sizes), offset=list(shard.shard_offsets), rank=shard.placement.rank())
        for shard in layout.sharding_spec.shards
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """TorchRec's planner logs a line for every table, some of them to the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


# TorchRec's estimators, asked once for shards that are alike: a table in 128 equal parts is estimated once, not 128
# times, which makes planning for 128 ranks several times faster.


class OncePerSize(ShardEstimator):
    """Gives shards of one option that have the same size the same estimate, made once by `estimator`."""

    def __init__(self, estimator: ShardEstimator) -> None:
        self._estimator = estimator

    def estimate(self, sharding_options: list[ShardingOption], *arguments: Any, **named: Any) -> None:
        """Fills shard.perf or shard.storage, as `estimator` does."""
        every = [option.shards for option in sharding_options]
        first: list[dict[tuple[int, ...], Shard]] = []
        try:
            for option in sharding_options:
                first.append({tuple(shard.size): shard for shard in reversed(option.shards)})
                option.shards = list(first[-1].values())
            self._estimator.estimate(sharding_options, *arguments, **named)
        finally:
            for option, shards in zip(sharding_options, every, strict=True):
                option.shards = shards
        for shards, alike in zip(every, first, strict=True):
            for shard in shards:
                shard.perf, shard.storage = alike[tuple(shard.size)].perf, alike[tuple(shard.size)].storage


# What tables may fill of each rank's memory: what TorchRec's planner leaves after its reservation for all else.


MARGIN = 0.15
"""Share of a GPU's memory that is kept free, as TorchRec's planner does."""


def reservation() -> HeuristicalStorageReservation:
    """TorchRec's default: MARGIN, six times the dense parameters, and twenty times a batch's ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return HeuristicalStorageReservation(percentage=MARGIN)


def table_room(workload: Workload, hardware: Hardware, sharders: Sharders) -> Storage:
    """Bytes of one rank that are left for tables. Raises NoPlanError where there is less than nothing."""
    constraints = {name: table_constraint(workload, hardware, name) for name in workload.tables}
    with quiet():
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
    room = topology.devices[0].storage if topology else Storage(hbm=-1, ddr=0)
    if room.hbm < 0 or room.ddr < 0:
        raise NoPlanError(_nothing_left(workload, hardware))
    return room


def _nothing_left(workload: Workload, hardware: Hardware) -> str:
    cap = hardware.ddr if hardware.device == "cpu" else hardware.hbm
    ids = sum(load.bags * sum(load.ids_per_bag) for load in workload.loads.values())
    return (
        f"memory of a rank of {hardware.name}: expected room for tables beside the dense layers "
        f"({6 * 4 * workload.dense_parameters:,} bytes reserved) and the batches ({20 * 8 * ids:,.0f} bytes reserved), "
        f"got {cap:,} bytes in all; fewer rows per step or more memory would help"
    )
