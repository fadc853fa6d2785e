"""Whether plans' models fit the memory at hand: each by itself, and all at once."""

from collections.abc import Sequence

import torch

from sidrec.machine import memory
from sidrec.plans.hardware import GB, Hardware

FOR_ONE = 0.9
"""Share of the free memory that one plan's tables may take; batches and buffers need the rest."""
FOR_ALL = 0.5
"""The same for the tables of all plans, where all models are kept between rounds."""


class Room:
    """The memory that is free now on this rank's device, or on this rank's machine, which its ranks share."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._on_gpu = hardware.device == "cuda"
        self.free = torch.cuda.mem_get_info()[0] if self._on_gpu else memory()[0]

    def lacks(self, bytes_W: Sequence[int]) -> str | None:
        """Why tables of so many bytes on each rank do not fit; None where they do."""
        needed, allowed = self._needed(bytes_W), FOR_ONE * self.free
        if needed <= allowed:
            return None
        where = "one GPU" if self._on_gpu else "one machine"
        return (
            f"expected tables and optimizer state of at most {allowed / GB:.1f} GB on {where} "
            f"({FOR_ONE:.0%} of what is free), got {needed / GB:.1f} GB"
        )

    def keeps(self, plans: Sequence[Sequence[int]]) -> bool:
        """Whether the models of all plans fit at once. plans: for each, bytes on each rank."""
        return sum(map(self._needed, plans)) <= FOR_ALL * self.free

    def _needed(self, bytes_W: Sequence[int]) -> int:
        """Bytes on the fullest GPU or machine."""
        if self._on_gpu:
            return max(bytes_W)
        local = self._hardware.local_world
        return max(sum(bytes_W[first : first + local]) for first in range(0, len(bytes_W), local))
