"""Makes the sharding plan: from a plan file, by TorchRec's planner, or by a search on costs measured on this device."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology, constants
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ModuleSharder, ShardingPlan, ShardingType
from torchrec.modules.embedding_configs import PoolingType

from sidrec.config.recipe import ParallelConfig
from sidrec.errors import PlanError, print_warning
from sidrec.machine import memory
from sidrec.parallel.process_group import Ranks, broadcast_object, gather_objects, run_on_all_ranks
from sidrec.parallel.sharding import MANAGED, managed_tables
from sidrec.plans.calibration import CalibratedCost, load_calibration
from sidrec.plans.hardware import Gpu, Hardware, published
from sidrec.plans.options import OrderedEnumerator, sharding_plan
from sidrec.plans.plan_file import PlanFile, read_plan, sharding_plan_of
from sidrec.plans.search import search
from sidrec.plans.workload import Workload, tables_of
from sidrec.schema import ContractError


def make_plan(
    ranker: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    config: ParallelConfig,
    workload: Callable[[], Workload],
    ranks: Ranks,
) -> ShardingPlan:
    """The plan in the file config.plan, else one that rank 0 makes for `workload` and broadcasts.

    Without config.calibration TorchRec's planner makes it. With it, our search does; it also costs TorchRec's plan and
    takes another only if that is expected to be faster. Raises, on all ranks together: PlanError; ConfigError for a
    calibration of another device; ContractError if the plan file does not fit the model or the ranks.
    """
    hardware = hardware_of(ranks)
    run_on_all_ranks(ranks, lambda: _constraints(ranker, config, hardware))
    if config.plan is not None:
        return _file_plan(config.plan, ranker, sharders, ranks)

    planned = broadcast_object(
        ranks,
        run_on_all_ranks(
            ranks, lambda: plan_for(ranker, sharders, config, workload, hardware) if ranks.first else None
        ),
    )
    assert planned is not None, "run_on_all_ranks raises if rank 0 found no plan"
    return planned


def plan_for(
    ranker: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    config: ParallelConfig,
    workload: Callable[[], Workload],
    hardware: Hardware,
) -> ShardingPlan:
    """The plan that training on `hardware` would use; the hardware need not be present. Raises as `make_plan` does."""
    constraints = _constraints(ranker, config, hardware)
    if config.plan is not None:
        plan_file, world = read_plan(config.plan), (hardware.world, hardware.local_world, hardware.device)
        return sharding_plan_of(plan_file, ranker, *world, sharders, str(config.plan))
    if config.calibration is not None:
        return _searched_plan(workload(), sharders, config, config.calibration, hardware)
    return _torchrec_plan(ranker, sharders, config, workload(), constraints, hardware)


def _searched_plan(
    workload: Workload,
    sharders: Sequence[ModuleSharder[nn.Module]],
    config: ParallelConfig,
    calibration: Path,
    hardware: Hardware,
) -> ShardingPlan:
    cost = CalibratedCost(load_calibration(calibration, hardware.device))
    forced = None if config.sharding == "auto" else config.sharding
    options = search(workload, hardware, sharders, cost, forced)[0].options
    for warning in cost.warnings(options, workload, hardware):
        print_warning(f"{calibration}: {warning}")
    return sharding_plan(options, hardware)


def _torchrec_plan(
    ranker: nn.Module,
    sharders: Sequence[ModuleSharder[nn.Module]],
    config: ParallelConfig,
    workload: Workload,
    constraints: dict[str, ParameterConstraints],
    hardware: Hardware,
) -> ShardingPlan:
    rows_per_rank = workload.rows_per_rank
    constraints = constraints | _pooling_factors(workload, constraints)
    topology = _topology(hardware)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=rows_per_rank,
        enumerator=OrderedEnumerator(topology, batch_size=rows_per_rank, constraints=constraints),
        constraints=constraints,
        debug=False,
    )
    try:
        return planner.plan(ranker, list(sharders))
    except (PlannerError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise PlanError(f"no sharding plan for parallel.sharding={config.sharding}: {reason}") from error


def _topology(hardware: Hardware) -> Topology:
    """With the hardware's memory: without it TorchRec takes 32 GiB for a GPU and 128 GiB of host memory for each rank.

    On CPU TorchRec's own bandwidths stay, to the last bit, and with them the plans of earlier versions.
    """
    if hardware.device == "cuda":
        return hardware.topology()
    return Topology(
        world_size=hardware.world,
        local_world_size=hardware.local_world,
        compute_device=hardware.device,
        hbm_cap=hardware.hbm,
        ddr_cap=hardware.ddr,
    )


def local_world(ranks: Ranks) -> int:
    """Ranks per machine, as TorchRec's sharding counts them."""
    return get_local_size(ranks.world)


def _file_plan(
    path: Path, ranker: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], ranks: Ranks
) -> ShardingPlan:
    """Every rank reads the file from its own machine; all must read the same plan."""
    plan_file = run_on_all_ranks(ranks, lambda: read_plan(path))
    others = _differing(plan_file, ranks)

    def checked() -> ShardingPlan:
        if others:
            listed = ", ".join(map(str, others))
            raise ContractError(path, "the same plan on all ranks", f"another on rank(s) {listed} than on rank 0")
        device = ranks.device.type
        return sharding_plan_of(plan_file, ranker, ranks.world, local_world(ranks), device, sharders, str(path))

    return run_on_all_ranks(ranks, checked)


def _differing(plan_file: PlanFile, ranks: Ranks) -> list[int]:
    """Ranks whose plan differs from rank 0's."""
    digests = gather_objects(ranks, sha256(plan_file.as_text().encode()).hexdigest())
    return [rank for rank, digest in enumerate(digests) if digest != digests[0]]


def _constraints(ranker: nn.Module, config: ParallelConfig, hardware: Hardware) -> dict[str, ParameterConstraints]:
    if config.sharding != "auto":
        allowed = [config.sharding]
    elif hardware.world == 1:  # every type means the whole table, and the planner would try thousands of plans
        allowed = [ShardingType.TABLE_WISE.value]
    else:
        # On CPU the dense kernel of data_parallel is many times slower than the fused one; the planner does not know.
        unwanted = {ShardingType.DATA_PARALLEL.value} if hardware.device == "cpu" else set()
        allowed = [kind.value for kind in ShardingType if kind.value not in unwanted]
    every = {name: ParameterConstraints(sharding_types=allowed) for name in tables_of(ranker)}
    return every | _managed_constraints(ranker, config, hardware.world)


def _pooling_factors(
    workload: Workload, constraints: dict[str, ParameterConstraints]
) -> dict[str, ParameterConstraints]:
    """Constraints of the tables of lists, with their mean ids in a bag; TorchRec takes 1 for the others."""
    return {
        name: replace(constraints[name], pooling_factors=list(workload.loads[name].ids_per_bag))
        for name, table in workload.tables.items()
        if table.pooling == PoolingType.MEAN
    }


def _managed_constraints(ranker: nn.Module, config: ParallelConfig, world: int) -> dict[str, ParameterConstraints]:
    """Raises PlanError for a sharding or a number of rows that TorchRec does not support for a managed table."""
    constraints = {}
    for table in managed_tables(ranker):
        where, rows = f"no sharding plan for table {table.name}, which is managed", table.num_embeddings
        if config.sharding not in ("auto", "row_wise"):
            raise PlanError(f"{where}: expected parallel.sharding auto or row_wise, got {config.sharding}")
        if rows % world or rows < 2 * world:
            raise PlanError(f"{where}: expected rows that {world} rank(s) share evenly, two at least each, got {rows}")
        constraints[table.name] = MANAGED
    return constraints


def hardware_of(ranks: Ranks) -> Hardware:
    """The hardware of these ranks, as `hardware_here` describes it."""
    return hardware_here(ranks.device, ranks.world, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def hardware_here(device: torch.device, world: int, local_world: int) -> Hardware:
    """Hardware of `world` ranks, `local_world` on each machine; all machines are assumed to be like this one.

    Memory is this machine's. Bandwidths are published ones, as for `sidrec plan --hardware`, where the GPU is known;
    else TorchRec's defaults.
    """
    _, host_memory = memory()
    if device.type != "cuda":
        return _hardware("CPU", "cpu", world, local_world, 0, host_memory)
    gpu = torch.cuda.get_device_properties(device)
    return gpu_hardware(gpu.name, gpu.total_memory, host_memory, world, local_world)


def gpu_hardware(name: str, hbm: int, host_memory: int, world: int, local_world: int) -> Hardware:
    """Machines of GPUs. name, hbm: a GPU's, as CUDA reports them. host_memory: bytes of a machine."""
    known = _hardware(name, "cuda", world, local_world, hbm, host_memory)
    return known if (gpu := published(name, hbm)) is None else _with_bandwidths(known, gpu)


def _hardware(
    name: str, device: Literal["cpu", "cuda"], world: int, local_world: int, hbm: int, host_memory: int
) -> Hardware:
    """With TorchRec's default bandwidths."""
    per_second = 1e3  # TorchRec counts bytes per millisecond
    return Hardware(
        name=name,
        device=device,
        world=world,
        local_world=local_world,
        hbm=hbm,
        ddr=host_memory // local_world,
        hbm_bandwidth=constants.HBM_MEM_BW * per_second,
        ddr_bandwidth=constants.DDR_MEM_BW * per_second,
        host_link=constants.HBM_TO_DDR_MEM_BW * per_second,
        intra_bandwidth=constants.INTRA_NODE_BANDWIDTH * per_second,
        inter_bandwidth=constants.CROSS_NODE_BANDWIDTH * per_second,
    )


def _with_bandwidths(hardware: Hardware, gpu: Gpu) -> Hardware:
    return replace(
        hardware,
        hbm_bandwidth=gpu.hbm_bandwidth,
        ddr_bandwidth=gpu.ddr_bandwidth,
        host_link=gpu.pcie,
        intra_bandwidth=gpu.nvlink,
        inter_bandwidth=gpu.network,
    )
