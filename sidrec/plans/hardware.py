"""What a plan is made for: ranks, their memory, and how fast bytes move within and between machines."""

from dataclasses import dataclass
from inspect import signature
from typing import Literal

from torchrec.distributed.planner import Topology

from sidrec.config import ConfigError

GIB = 2**30
GB = 10**9


@dataclass(frozen=True)
class Hardware:
    """world: ranks in all; local_world: ranks of one machine. hbm, ddr: bytes that one rank may fill.

    Bandwidths in bytes per second: of a device's memory (hbm), of the host's (ddr), between both (host_link), between
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
            expected = "a world that the ranks of one machine divide"
            raise ConfigError(f"hardware {self.name}: expected {expected}, got {self.world} of {self.local_world}")

    @property
    def machines(self) -> int:
        return self.world // self.local_world

    def topology(self) -> Topology:
        """TorchRec's view of it."""
        per_ms = 1e-3
        # Made without its factory, which would check no more than we do, it warns that jobs will fail.
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
