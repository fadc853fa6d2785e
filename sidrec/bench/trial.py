"""One plan's model on the ranks, and a visit to it: warmed up, steps timed whole, then taken apart.

Shapes: S timed steps.
"""

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.distributed.types import ShardingPlan

from sidrec.bench.phases import PARTS, PartedStep
from sidrec.bench.subject import Subject
from sidrec.parallel.process_group import Ranks
from sidrec.parallel.shard import shard_as_planned
from sidrec.train.optimizers import build_optimizer

PIPELINES = {"sparse_dist": TrainPipelineSparseDist, "plain": TrainPipelineBase}


@dataclass(frozen=True)
class Amounts:
    """What to do in a visit: steps before the clock runs, and steps timed, whole and then as often in parts."""

    warm_up: int
    steps: int


@dataclass(frozen=True)
class Visit:
    """What a visit found on this rank.

    losses: of the whole steps, warm-up included, over this rank's rows. milliseconds: phase -> [S]. cpu: [S], what this
    process spent of CPU time in each whole step. ids: looked up on this rank in a step, on average. memory: bytes of
    this rank's tables and their optimizer state.
    """

    losses: list[float]
    milliseconds: Mapping[str, list[float]]
    cpu: list[float]
    ids: float
    memory: int


class _Step(NamedTuple):
    """A step of the pipeline: milliseconds, of the clock and of this process's CPU time, and the loss."""

    wall: float
    cpu: float
    loss: torch.Tensor


class Trial:
    """A plan, built: the model with the same first values as under every other plan, optimizer and pipeline."""

    def __init__(self, subject: Subject, plan: ShardingPlan, ranks: Ranks) -> None:
        torch.manual_seed(subject.seed)
        self._model = shard_as_planned(subject.model(), plan, subject.optimizer, subject.seed, ranks)
        self._model.train()
        self._optimizer = build_optimizer(self._model, subject.optimizer, dim=0)  # asked for by row-wise Adagrad only
        self._pipeline = PIPELINES[subject.pipeline](self._model, self._optimizer, ranks.device)
        self._parted = PartedStep(self._model, self._optimizer, ranks)
        self._batches = subject.endless()
        self._ranks = ranks

    def visit(self, amounts: Amounts) -> Visit:
        """Trains and measures. All ranks call this together."""
        warm_up = [self._step() for _ in range(amounts.warm_up)]
        gc.collect()
        dist.barrier(group=self._ranks.control)
        timed = [self._step() for _ in range(amounts.steps)]
        if isinstance(self._pipeline, TrainPipelineSparseDist):
            self._pipeline.detach()  # the collections get their ordinary parts back, until the pipeline's next step
        parted = [self._parted(next(self._batches)) for _ in range(amounts.steps)]
        milliseconds = {part: [times[part] for times, _ in parted] for part in PARTS}
        return Visit(
            losses=[float(step.loss) for step in (*warm_up, *timed)],
            milliseconds={"step": [step.wall for step in timed], **milliseconds},
            cpu=[step.cpu for step in timed],
            ids=sum(ids for _, ids in parted) / len(parted),
            memory=_table_bytes(self._model.state_dict()) + _table_bytes(self._optimizer.state_dict()["state"]),
        )

    def _step(self) -> _Step:
        wall, cpu = time.perf_counter(), time.process_time()
        terms, _ = self._pipeline.progress(self._batches)
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize(self._ranks.device)
        return _Step((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3, terms["loss"])


def _table_bytes(state: Mapping[str, Any]) -> int:
    """Bytes of this rank's part of what belongs to embedding tables."""
    return sum(_local_bytes(value) for name, value in state.items() if ".embedding_bags." in name)


def _local_bytes(value: Any) -> int:
    if isinstance(value, ShardedTensor):
        return sum(shard.tensor.nbytes for shard in value.local_shards())
    if isinstance(value, Mapping):
        return sum(map(_local_bytes, value.values()))
    return value.nbytes if isinstance(value, torch.Tensor) else 0
