"""The hardware under the ranks at hand, as a plan's cost model wants it described."""

import os

import torch
from torchrec.distributed.planner import constants

from sidrec.machine import memory
from sidrec.parallel.process_group import Ranks
from sidrec.plans.hardware import Hardware


def hardware_of(ranks: Ranks) -> Hardware:
    """These ranks, with the memory they have and the bandwidths that TorchRec assumes where it is told none."""
    return hardware_here(ranks.device, ranks.world, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def hardware_here(device: torch.device, world: int, local_world: int) -> Hardware:
    """`world` ranks, not necessarily there, `local_world` of them on each machine, which are all like this one."""
    per_second = 1e3  # TorchRec counts bytes per millisecond
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    _, host_memory = memory()
    return Hardware(
        name=gpu.name if gpu else "CPU",
        device="cuda" if gpu else "cpu",
        world=world,
        local_world=local_world,
        hbm=gpu.total_memory if gpu else 0,
        ddr=host_memory // local_world,
        hbm_bandwidth=constants.HBM_MEM_BW * per_second,
        ddr_bandwidth=constants.DDR_MEM_BW * per_second,
        host_link=constants.HBM_TO_DDR_MEM_BW * per_second,
        intra_bandwidth=constants.INTRA_NODE_BANDWIDTH * per_second,
        inter_bandwidth=constants.CROSS_NODE_BANDWIDTH * per_second,
    )
