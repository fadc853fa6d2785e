"""The hardware that a plan is made for: ranks, their memory, and bandwidths within and between machines.

`named_hardware` knows machines by name (`8xa100`), which need not be at hand.
"""

import re
from dataclasses import dataclass, replace
from inspect import signature
from typing import Literal

from torchrec.distributed.planner import Topology

from sidrec.config import ConfigError
from sidrec.machine import memory
from sidrec.text import did_you_mean

GIB = 2**30
GB = 10**9


@dataclass(frozen=True)
class Hardware:
    """world: number of ranks; local_world: ranks per machine. hbm, ddr: bytes that one rank may use.

    Bandwidths in bytes per second: of GPU memory (hbm), of host memory (ddr), between the two (host_link), between
    ranks of one machine (intra) and of two machines (inter).
    """

    name: str
    device: Literal["cpu", "cuda"]
    world: int
    local_world: int
    hbm: int
    ddr: int
    hbm_bandwidth: float
    ddr_bandwidth: float
    host_link: float
    intra_bandwidth: float
    inter_bandwidth: float

    def __post_init__(self) -> None:
        if self.world < 1 or self.local_world < 1 or self.world % self.local_world:
            expected = "a world that is a multiple of local_world"
            raise ConfigError(f"hardware {self.name}: expected {expected}, got {self.world} of {self.local_world}")

    @property
    def machines(self) -> int:
        return self.world // self.local_world

    def topology(self) -> Topology:
        """As TorchRec's planner describes it."""
        per_ms = 1e-3
        # Topology warns unless its factory is used; the factory adds no check.
        unwarned = {"created_by_factory": True} if "created_by_factory" in signature(Topology).parameters else {}
        return Topology(
            world_size=self.world,
            local_world_size=self.local_world,
            compute_device=self.device,
            hbm_cap=self.hbm,
            ddr_cap=self.ddr,
            hbm_mem_bw=self.hbm_bandwidth * per_ms,
            ddr_mem_bw=self.ddr_bandwidth * per_ms,
            hbm_to_ddr_mem_bw=self.host_link * per_ms,
            intra_host_bw=self.intra_bandwidth * per_ms,
            inter_host_bw=self.inter_bandwidth * per_ms,
            **unwarned,
        )


# Machines by name: `8xa100` is one machine of 8 GPUs, `16x8h100` 16 machines of 8.
#
# Published figures, divided by the GPUs of a machine. Bandwidths count one direction: in a collective, every byte that
# one rank sends is received by another.
#
# * A100 80GB SXM (NVIDIA A100 datasheet, DGX A100 datasheet): 80 GB HBM2e at 2,039 GB/s; NVLink 600 GB/s both ways; a
#   DGX A100 has eight 200 Gb/s InfiniBand ports for its 8 GPUs, PCIe 4.0 x16, 2 TB of DDR4-3200 on 2 x 8 channels.
# * H100 80GB SXM (NVIDIA H100 datasheet, DGX H100 datasheet): 80 GB HBM3 at 3,350 GB/s; NVLink 900 GB/s both ways; a
#   DGX H100 has eight 400 Gb/s InfiniBand ports, PCIe 5.0 x16, 2 TB of DDR5-4800 on 2 x 8 channels.
# * H200 141GB SXM (NVIDIA H200 datasheet): 141 GB HBM3e at 4,800 GB/s, otherwise as H100.
# * cpu: the memory of this machine, which its ranks share. Bandwidths are no published figures but a guess: TorchRec's
#   own for DDR (51 GiB/s), and 1 GB/s for gloo between processes. A calibration replaces it.


@dataclass(frozen=True)
class Gpu:
    """Resources of one GPU: bytes, and bytes per second in one direction."""

    hbm: int
    hbm_bandwidth: float
    nvlink: float
    pcie: float
    network: float
    ddr_bandwidth: float


GPUS = {
    "a100": Gpu(80 * GB, 2039 * GB, 300 * GB, 32 * GB, 25 * GB, 409.6 * GB / 8),
    "h100": Gpu(80 * GB, 3350 * GB, 450 * GB, 64 * GB, 50 * GB, 614.4 * GB / 8),
    "h200": Gpu(141 * GB, 4800 * GB, 450 * GB, 64 * GB, 50 * GB, 614.4 * GB / 8),
}


def published(device_name: str, memory_bytes: int) -> Gpu | None:
    """The figures of a GPU at hand; None if it is none of GPUS, or another of its variants (PCIe, less memory).

    device_name, memory_bytes: as CUDA reports them, such as "NVIDIA H100 80GB HBM3".
    """
    words = set(re.split(r"\W+", device_name.lower()))
    found = next((gpu for kind, gpu in GPUS.items() if kind in words), None)
    if found is None or words & {"pcie", "nvl"} or memory_bytes < 0.9 * found.hbm:
        return None
    return found


HOST_MEMORY_PER_GPU = 256 * GB  # 2 TB for 8
NAME = re.compile(r"(?:(?P<machines>\d+)x)?(?P<gpus>\d+)x?(?P<kind>[a-z]\w*)")
EXAMPLES = "cpu, 2xcpu, 8xa100, 8xh100, 16x8h100"


def named_hardware(name: str) -> Hardware:
    """Hardware for `cpu`, NxKIND or MACHINESxNKIND, with KIND one of GPUS or cpu. Raises ConfigError for others."""
    found = NAME.fullmatch("1xcpu" if name == "cpu" else name.lower())
    kind = found["kind"] if found else None
    if found is None or kind not in (*GPUS, "cpu"):
        got = f"{name!r}{did_you_mean(kind, GPUS) if kind else ''}"
        raise ConfigError(f"hardware: expected a name such as {EXAMPLES} of {', '.join(GPUS)} or cpu, got {got}")
    local_world = int(found["gpus"])
    world = int(found["machines"] or 1) * local_world
    if kind == "cpu":
        return _cpus(name, world, local_world)
    gpu = GPUS[kind]
    return Hardware(
        name=name,
        device="cuda",
        world=world,
        local_world=local_world,
        hbm=gpu.hbm,
        ddr=HOST_MEMORY_PER_GPU,
        hbm_bandwidth=gpu.hbm_bandwidth,
        ddr_bandwidth=gpu.ddr_bandwidth,
        host_link=gpu.pcie,
        intra_bandwidth=gpu.nvlink,
        inter_bandwidth=gpu.network,
    )


def _cpus(name: str, world: int, local_world: int) -> Hardware:
    return Hardware(
        name=name,
        device="cpu",
        world=world,
        local_world=local_world,
        hbm=0,
        ddr=_memory_of_a_rank(local_world),
        hbm_bandwidth=51 * GIB,
        ddr_bandwidth=51 * GIB,
        host_link=51 * GIB,
        intra_bandwidth=GB,
        inter_bandwidth=GB,
    )


def _memory_of_a_rank(local_world: int) -> int:
    """Bytes: this machine's memory, within the limits of its container or job, for each of its ranks."""
    return memory()[1] // max(1, local_world)


def with_ranks(hardware: Hardware, world: int | None, local_world: int | None) -> Hardware:
    """The same kind of machines with other numbers of ranks; None keeps a number.

    If only `world` is given, a machine keeps its ranks or has the whole of a smaller world; CPU processes all stay on
    one machine and share its memory. Raises ConfigError if local_world does not divide world.
    """
    ranks = world or hardware.world
    one_machine = hardware.device == "cpu" and hardware.machines == 1
    per_machine = local_world or (ranks if one_machine else min(hardware.local_world, ranks))
    ddr = _memory_of_a_rank(per_machine) if hardware.device == "cpu" else hardware.ddr
    return replace(hardware, world=ranks, local_world=per_machine, ddr=ddr)


def bytes_of(text: str) -> int:
    """`80GB`, `1.5TiB`, `512MB` as bytes. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", text.strip().upper())
    if found is None:
        raise ConfigError(f"bytes: expected a number and a unit such as 80GB or 512MiB, got {text!r}")
    power = " KMGT".index(found[2] or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)
