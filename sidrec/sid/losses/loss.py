"""The contract of the losses that plug into any gradient-trained learner.

Shapes as in `sidrec.sid.networks.network`.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from sidrec.config.sid_losses import Schedule
from sidrec.sid.networks.network import Coded, ItemBatch, Network

Need = Literal["pairs", "behavior"]


class SidLoss(nn.Module, ABC):
    """One term. `needs`: what the batch must carry. Buffers are part of a training's checkpoint."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        """The weighted term, a scalar; without the schedule's factor, which the training applies."""

    def begin_epoch(self, network: Network) -> None:
        """Called before every epoch, for what follows the codebooks at a distance."""

    def seen(self) -> dict[str, float]:
        """What is worth logging of the last step."""
        return {}


def schedule_factor(schedule: Schedule | None, progress: float) -> float:
    """Factor of a weight at `progress`, the share of all steps done (AdaSID, arXiv 2604.23522, section PAR)."""
    if schedule is None:
        return 1.0
    span = schedule.end - schedule.begin
    done = min(max((progress - schedule.begin) / span, 0.0), 1.0) if span > 0 else float(progress >= schedule.end)
    return schedule.first + (schedule.last - schedule.first) * done
