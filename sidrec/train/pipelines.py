"""TorchRec's training pipelines, with a backward that keeps what is not finite out of tables and layers."""

from typing import Literal

import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

from sidrec.train.non_finite import StepGuard
from sidrec.train.optimizers import ScheduledOptimizer


class PlainPipeline(TrainPipelineBase):
    """One batch after the other."""

    def __init__(
        self, model: DistributedModelParallel, optimizer: ScheduledOptimizer, device: torch.device, guard: StepGuard
    ) -> None:
        super().__init__(model, optimizer, device)
        self._guard = guard

    def _backward(self, losses: Tensor) -> None:
        self._guard.backward(losses)


class SparseDistPipeline(TrainPipelineSparseDist):
    """The next batch's ids travel to their ranks while this one is computed."""

    def __init__(
        self, model: DistributedModelParallel, optimizer: ScheduledOptimizer, device: torch.device, guard: StepGuard
    ) -> None:
        super().__init__(model, optimizer, device)
        self._guard = guard

    def _backward(self, losses: Tensor) -> None:
        self._guard.backward(losses)


Pipeline = PlainPipeline | SparseDistPipeline
KINDS: dict[Literal["sparse_dist", "plain"], type[PlainPipeline] | type[SparseDistPipeline]] = {
    "sparse_dist": SparseDistPipeline,
    "plain": PlainPipeline,
}
