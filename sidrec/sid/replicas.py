"""Data parallelism of the learners: the only communication in `sidrec.sid`.

It uses the process group that its caller joined. Without a process group there is one replica and no communication.
"""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


class Replicas:
    """One replica without communication. With several, all call the same methods in the same order.

    device: where this replica trains.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self.device = device or torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this replica shows progress and writes the checkpoints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over replicas."""
        return tensor

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each float tensor by its mean over replicas."""

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by the first replica's."""

    def broadcast_object(self, value: T) -> T:
        """The first replica's value, on all of them."""
        return value


SINGLE = Replicas()


class JoinedReplicas(Replicas):
    """A replica in the process group that this process has joined."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(dist.get_rank(), dist.get_world_size(), device)

    def sum(self, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def average(self, tensors: Sequence[Tensor]) -> None:
        bucket = torch.cat([tensor.flatten() for tensor in tensors])  # one exchange instead of one per tensor
        dist.all_reduce(bucket)
        bucket /= self.size
        parts = torch.split(bucket, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)  # outside autograd

    def broadcast_object(self, value: T) -> T:
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]


def current_replicas() -> Replicas:
    """The replicas of the joined process group, or a single one; on this process's GPU if there is one."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    joined = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return JoinedReplicas(device) if joined else Replicas(device=device)
