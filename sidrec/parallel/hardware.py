"""The hardware under the ranks at hand, as a plan's cost model wants it described."""

import os

import torch
from torchrec.distributed.planner import constants

from sidrec.machine import memory
from sidrec.parallel.process_group import Ranks
from sidrec.plans.hardware import Hardware


def hardware_of(ranks: Ranks) -> Hardware:
    """These ranks, with the memory they have and the bandwidths that TorchRec assumes where it is told none."""
    per_second = 1e3  # TorchRec counts bytes per millisecond
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpu = torch.cuda.get_device_properties(ranks.device) if ranks.device.type == "cuda" else None
    _, host_memory = memory()
    return Hardware(
        name=gpu.name if gpu else "CPU",
        device="cuda" if gpu else "cpu",
        world=ranks.world,
        local_world=local_world,
        hbm=gpu.total_memory if gpu else 0,
        ddr=host_memory // local_world,
        hbm_bandwidth=constants.HBM_MEM_BW * per_second,
        ddr_bandwidth=constants.DDR_MEM_BW * per_second,
        host_link=constants.HBM_TO_DDR_MEM_BW * per_second,
        intra_bandwidth=constants.INTRA_NODE_BANDWIDTH * per_second,
        inter_bandwidth=constants.CROSS_NODE_BANDWIDTH * per_second,
    )
