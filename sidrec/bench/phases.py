"""Where a training step's time goes: the step taken apart, with every rank waiting for the others after each part."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.optim import Optimizer
from torchrec.distributed.types import LazyAwaitable, ShardedModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.parallel.process_group import Ranks

PARTS = ("input_dist", "lookup", "output_dist", "dense_forward", "backward")


def sharded_collections(model: nn.Module) -> list[ShardedModule]:
    """The sharded embedding collections of a model, those within another one left out."""
    found: list[tuple[str, ShardedModule]] = []
    for path, module in model.named_modules():
        if isinstance(module, ShardedModule) and not any(path.startswith(f"{outer}.") for outer, _ in found):
            found.append((path, module))
    return [module for _, module in found]


class PartedStep:
    """Training steps taken apart. The model may stand in a pipeline: it is as before after every step."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, ranks: Ranks) -> None:
        self._model = model
        self._optimizer = optimizer
        self._ranks = ranks
        self._collections = sharded_collections(model)
        self._milliseconds: dict[str, float] = {}
        self._ids = 0
        self._since = 0.0

    def __call__(self, batch: Any) -> tuple[dict[str, float], int]:
        """Trains on a batch.

        Returns: part -> this rank's milliseconds, waiting for others left out, and the ids this rank looked up.
        """
        batch = batch.to(self._ranks.device)
        self._milliseconds, self._ids = dict.fromkeys(PARTS, 0.0), 0
        self._optimizer.zero_grad()
        with _replaced_forward((module, self._forward(module)) for module in self._collections):
            self._meet()
            loss, _ = self._model(batch)
            self._lap("dense_forward")
        loss.backward()
        self._optimizer.step()
        self._lap("backward")
        return self._milliseconds, self._ids

    def _forward(self, module: ShardedModule) -> Callable[..., Any]:
        """What stands in the place of a collection's forward: the same, its parts timed."""

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
        """Books the time since the last meeting on `part`, and meets the other ranks."""
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize(self._ranks.device)
        self._milliseconds[part] += (time.perf_counter() - self._since) * 1e3
        self._meet()

    def _meet(self) -> None:
        dist.barrier(group=self._ranks.control)
        self._since = time.perf_counter()


@contextmanager
def _replaced_forward(replacements: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Other forwards for a while: a pipeline's stand in the modules as attributes, the ordinary one in their class."""
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
    """Managed collections give a pair of awaitables, the others one."""
    if isinstance(output, tuple):
        return tuple(_awaited(part) for part in output)
    return output.wait() if isinstance(output, LazyAwaitable) else output


def _ids(local: Iterable[Any]) -> int:
    """Ids in the features that one collection looks up on this rank."""
    return sum(
        part.values().numel() if isinstance(part, KeyedJaggedTensor) else _ids(part)
        for part in local
        if part is not None
    )
