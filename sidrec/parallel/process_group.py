"""The ranks of a run: who I am, on which device, with how many threads, and how all ranks agree on small facts."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed as dist

from sidrec.config import ConfigError
from sidrec.machine import threads_per_rank


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks.

    control: a gloo group beside the training group, for facts that live on the CPU.
    """

    rank: int
    world: int
    device: torch.device
    threads: int
    control: dist.ProcessGroup

    @property
    def first(self) -> bool:
        """Whether this rank speaks for all: prints, writes, plans."""
        return self.rank == 0


class RankError(ConfigError):
    """Another rank failed; the message carries its sentence."""


def _quiet() -> None:
    """Silences what TorchRec says of its own insides on every start: nothing to be done about it."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    for name in ("planner.types", "planner.storage_reservations", "comm", "utils"):
        logging.getLogger(f"torchrec.distributed.{name}").setLevel(logging.ERROR)


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Joins the ranks that torchrun started, or makes a world of one where nothing did; leaves them at the end.

    NCCL where each rank has a GPU, gloo on CPU. A rank that fails leaves without waiting for the others.
    """
    _quiet()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    threads = threads_per_rank()
    torch.set_num_threads(threads)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    control = dist.new_group(backend="gloo")
    yield Ranks(dist.get_rank(), dist.get_world_size(), device, threads, control)
    dist.destroy_process_group()


def agree(ranks: Ranks, error: Exception | None) -> None:
    """Every rank calls this with its own outcome; if any has an error, all raise.

    Raises: this rank's own error, or RankError with the sentence of the first rank that failed.
    """
    sentence = None if error is None else f"{error}"
    sentences: list[str | None] = [None] * ranks.world
    dist.all_gather_object(sentences, sentence, group=ranks.control)
    if error is not None:
        raise error
    for rank, other in enumerate(sentences):
        if other is not None:
            raise RankError(f"rank {rank} stopped: {other}")


def total(ranks: Ranks, value: int) -> int:
    """The sum of every rank's `value`."""
    values = torch.tensor([value], dtype=torch.int64)
    dist.all_reduce(values, group=ranks.control)
    return int(values)


def largest(ranks: Ranks, value: int) -> int:
    """The largest `value` any rank has."""
    if ranks.world == 1:
        return value
    values = torch.tensor([value], dtype=torch.int64)
    dist.all_reduce(values, dist.ReduceOp.MAX, group=ranks.control)
    return int(values)
