"""One plan's sharded model, and a visit to it: warm-up steps, timed whole steps, then timed phases of a step.

Shapes: S timed steps.
"""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.optim import Optimizer
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.distributed.types import LazyAwaitable, ShardedModule, ShardingPlan
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.bench.subject import Subject
from sidrec.parallel.process_group import Ranks
from sidrec.parallel.sharding import shard, sharders_of
from sidrec.train.optimizers import build_optimizer

PIPELINES = {"sparse_dist": TrainPipelineSparseDist, "plain": TrainPipelineBase}


@dataclass(frozen=True)
class StepCounts:
    """Steps of a visit: warm_up untimed ones, `timed` whole ones, and `timed` ones timed by phase."""

    warm_up: int
    timed: int


@dataclass(frozen=True)
class Visit:
    """Measurements of a visit on this rank.

    losses: of the whole steps, warm-up included, over this rank's rows. milliseconds: phase -> [S].
    cpu: [S] CPU milliseconds of this process in each whole step. ids: mean ids looked up on this rank in a step.
    memory: bytes of this rank's tables and their optimizer state.
    """

    losses: list[float]
    milliseconds: Mapping[str, list[float]]
    cpu: list[float]
    ids: float
    memory: int


class _Step(NamedTuple):
    """A step of the pipeline: wall-clock and CPU milliseconds, and the loss."""

    wall: float
    cpu: float
    loss: torch.Tensor


class Trial:
    """Model, optimizer and pipeline of a plan. The initial values are the same under every plan."""

    def __init__(self, subject: Subject, plan: ShardingPlan, ranks: Ranks) -> None:
        torch.manual_seed(subject.seed)
        model = subject.model()
        self._model = shard(model, plan, sharders_of(model, subject.optimizer, subject.seed), subject.seed, ranks)
        self._model.train()
        self._optimizer = build_optimizer(self._model, subject.optimizer, dim=0)  # dim: used by row-wise Adagrad only
        self._pipeline = PIPELINES[subject.pipeline](self._model, self._optimizer, ranks.device)
        self._split_step = SplitStep(self._model, self._optimizer, ranks)
        self._batches = subject.endless()
        self._ranks = ranks

    def visit(self, steps: StepCounts) -> Visit:
        """Trains and measures. Collective."""
        warm_up = [self._step() for _ in range(steps.warm_up)]
        gc.collect()
        dist.barrier(group=self._ranks.control)
        timed = [self._step() for _ in range(steps.timed)]
        if isinstance(self._pipeline, TrainPipelineSparseDist):
            self._pipeline.detach()  # restores the collections' own forward until the pipeline's next step
        split = [self._split_step(next(self._batches)) for _ in range(steps.timed)]
        milliseconds = {part: [times[part] for times, _ in split] for part in PARTS}
        return Visit(
            losses=[float(step.loss) for step in (*warm_up, *timed)],
            milliseconds={"step": [step.wall for step in timed], **milliseconds},
            cpu=[step.cpu for step in timed],
            ids=sum(ids for _, ids in split) / len(split),
            memory=_table_bytes(self._model.state_dict()) + _table_bytes(self._optimizer.state_dict()["state"]),
        )

    def _step(self) -> _Step:
        wall, cpu = time.perf_counter(), time.process_time()
        terms, _ = self._pipeline.progress(self._batches)
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize(self._ranks.device)
        return _Step((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3, terms["loss"])


def _table_bytes(state: Mapping[str, Any]) -> int:
    """Bytes on this rank of the entries that belong to embedding tables."""
    return sum(_local_bytes(value) for name, value in state.items() if ".embedding_bags." in name)


def _local_bytes(value: Any) -> int:
    if isinstance(value, ShardedTensor):
        return sum(shard.tensor.nbytes for shard in value.local_shards())
    if isinstance(value, Mapping):
        return sum(map(_local_bytes, value.values()))
    return value.nbytes if isinstance(value, torch.Tensor) else 0


# A training step split into parts, with a barrier after each.

PARTS = ("input_dist", "lookup", "output_dist", "dense_forward", "backward")


def sharded_collections(model: nn.Module) -> list[ShardedModule]:
    """The sharded embedding collections of a model, without those inside of another one."""
    found: list[tuple[str, ShardedModule]] = []
    for path, module in model.named_modules():
        if isinstance(module, ShardedModule) and not any(path.startswith(f"{outer}.") for outer, _ in found):
            found.append((path, module))
    return [module for _, module in found]


class SplitStep:
    """Times the parts of a training step. The model may belong to a pipeline: it is unchanged after every step."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, ranks: Ranks) -> None:
        self._model = model
        self._optimizer = optimizer
        self._ranks = ranks
        self._collections = sharded_collections(model)
        self._milliseconds: dict[str, float] = {}
        self._ids = 0
        self._since = 0.0

    def __call__(self, batch: Any) -> tuple[dict[str, float], int]:
        """Trains on a batch. Returns part -> milliseconds of this rank without waiting, and the ids it looked up."""
        batch = batch.to(self._ranks.device)
        self._milliseconds, self._ids = dict.fromkeys(PARTS, 0.0), 0
        self._optimizer.zero_grad()
        with _replaced_forward((module, self._forward(module)) for module in self._collections):
            self._barrier()
            loss, _ = self._model(batch)
            self._lap("dense_forward")
        loss.backward()
        self._optimizer.step()
        self._lap("backward")
        return self._milliseconds, self._ids

    def _forward(self, module: ShardedModule) -> Callable[..., Any]:
        """A replacement of a collection's forward that computes the same and times its parts."""

        def forward(*features: Any) -> Any:
            self._lap("dense_forward")
            context = module.create_context()
            local = module.input_dist(context, *features).wait().wait()
            self._lap("input_dist")
            self._ids += _ids(local)
            self._since = time.perf_counter()
            looked_up = module.compute(context, local)
            self._lap("lookup")
            output = _awaited(module.output_dist(context, looked_up))
            self._lap("output_dist")
            return output

        return forward

    def _lap(self, part: str) -> None:
        """Adds the time since the last barrier to `part`, then waits for the other ranks."""
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize(self._ranks.device)
        self._milliseconds[part] += (time.perf_counter() - self._since) * 1e3
        self._barrier()

    def _barrier(self) -> None:
        dist.barrier(group=self._ranks.control)
        self._since = time.perf_counter()


@contextmanager
def _replaced_forward(replacements: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Replaces `forward` of modules within the block. A pipeline sets it on the instance, else it is the class's."""
    before: list[tuple[nn.Module, Callable[..., Any] | None]] = []
    try:
        for module, forward in replacements:
            before.append((module, module.__dict__.get("forward")))
            module.forward = forward
        yield
    finally:
        for module, own in before:
            if own is None:
                del module.forward
            else:
                module.forward = own


def _awaited(output: Any) -> Any:
    """Waits for an output. Managed collections return a pair of awaitables, the others one."""
    if isinstance(output, tuple):
        return tuple(_awaited(part) for part in output)
    return output.wait() if isinstance(output, LazyAwaitable) else output


def _ids(local: Iterable[Any]) -> int:
    """Number of ids that one collection looks up on this rank."""
    return sum(
        part.values().numel() if isinstance(part, KeyedJaggedTensor) else _ids(part)
        for part in local
        if part is not None
    )
