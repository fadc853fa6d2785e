"""TorchRec's training pipelines, with a backward that keeps what is not finite out of tables and layers."""

from typing import Literal

import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

from sidrec.train.non_finite import StepGuard
from sidrec.train.optimizers import ScheduledOptimizer


class _Guarded:
    guard: StepGuard

    def _backward(self, losses: Tensor) -> None:
        self.guard.backward(losses)


class PlainPipeline(_Guarded, TrainPipelineBase):
    """One batch after the other."""


class SparseDistPipeline(_Guarded, TrainPipelineSparseDist):
    """The next batch's ids travel to their ranks while this one is computed."""


Pipeline = PlainPipeline | SparseDistPipeline
KINDS: dict[Literal["sparse_dist", "plain"], type[PlainPipeline] | type[SparseDistPipeline]] = {
    "sparse_dist": SparseDistPipeline,
    "plain": PlainPipeline,
}


def guarded_pipeline(
    kind: Literal["sparse_dist", "plain"],
    model: DistributedModelParallel,
    optimizer: ScheduledOptimizer,
    device: torch.device,
    guard: StepGuard,
) -> Pipeline:
    """The pipeline of that kind, whose steps `guard` runs backward."""
    pipeline = KINDS[kind](model, optimizer, device)
    pipeline.guard = guard
    return pipeline
