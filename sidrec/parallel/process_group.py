"""The ranks of a run: joining the process group, collectives for small values and errors, a heartbeat per rank."""

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from sidrec.errors import ConfigError, LostRankError, RankError
from sidrec.machine import threads_per_rank
from sidrec.rendezvous import check_addresses, no_meeting

T = TypeVar("T")


COMPUTES, READS, WAITS = "computes", "reads a batch", "waits for the other ranks"
WRITES = "waits for a checkpoint to be written"


@dataclass
class Heartbeat:
    """A rank's progress, which the watchdog observes. Only calls from the thread that made it count.

    count: stages so far, equal on ranks that are in the same place. task, doing: the work and its stage, as text.
    since: when the stage began, in seconds of time.monotonic().
    """

    count: int = 0
    task: str = "the start"
    doing: str = COMPUTES
    since: float = field(default_factory=time.monotonic)
    _thread: int = field(default_factory=threading.get_ident)

    def begin(self, task: str) -> None:
        """Begins a task, such as "step 3 of training"."""
        if threading.get_ident() == self._thread:
            self.task = task
            self.beat(COMPUTES)

    def beat(self, doing: str) -> None:
        """Begins the next stage of the task. doing: COMPUTES, READS, WAITS or WRITES."""
        if threading.get_ident() == self._thread:
            self.count, self.doing, self.since = self.count + 1, doing, time.monotonic()

    @property
    def place(self) -> str:
        """Task and stage, for a message."""
        return f"{self.task}: {self.doing}"


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks, and its device.

    control: a gloo group besides the training group, for values on the CPU.
    heartbeat: this rank's progress.
    runs_ahead: whether this process queues work for a device that does it later, as for a GPU. Nothing may then wait
        for a value of the step in hand, which would let the device run out of work.
    """

    rank: int
    world: int
    device: torch.device
    threads: int
    control: dist.ProcessGroup
    heartbeat: Heartbeat = field(default_factory=Heartbeat, compare=False)
    runs_ahead: bool = False

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints, writes files and plans for all."""
        return self.rank == 0


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """A context in the process group of torchrun's ranks, or of this process alone without torchrun.

    Backend: NCCL on GPUs, gloo on CPU; `device_of_rank` says which. A rank that fails leaves without waiting for the
    others. Raises ConfigError as `device_of_rank` and `check_addresses` do, LostRankError if ranks cannot join, or if
    another rank died, which breaks the connections to it.
    """
    _silence_torchrec()
    for name, value in NCCL_DEFAULTS.items():
        os.environ.setdefault(name, value)
    alone = "RANK" not in os.environ
    device = device_of_rank(os.environ, torch.cuda.device_count())
    gpu = device if device.type == "cuda" else None
    if gpu is not None:
        torch.cuda.set_device(gpu)
    threads = threads_per_rank()
    torch.set_num_threads(threads)
    control = _join("gloo" if gpu is None else "nccl", gpu, alone)
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        yield Ranks(rank, world, device, threads, control, runs_ahead=gpu is not None)
    except BaseException as error:
        if alone:
            dist.destroy_process_group()
        elif isinstance(error, RuntimeError) and _is_lost_connection(error):
            raise LostRankError(_lost_rank(error)) from error
        raise
    dist.destroy_process_group()


def _join(backend: str, gpu: torch.device | None, alone: bool) -> dist.ProcessGroup:
    """Joins the process group, and gives another one over gloo. alone: outside torchrun."""
    if alone:
        os.environ.setdefault("LOCAL_WORLD_SIZE", "1")  # TorchRec warns if it is not set
        store: dist.Store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=PATIENCE, device_id=gpu)
        return dist.new_group(backend="gloo", timeout=PATIENCE)
    check_addresses(os.environ)
    try:
        dist.init_process_group(backend, timeout=JOINED_WITHIN, device_id=gpu)
        control = dist.new_group(backend="gloo", timeout=JOINED_WITHIN)
    except RuntimeError as error:
        raise LostRankError(no_meeting(os.environ, error)) from error
    dist.distributed_c10d._get_default_store().set_timeout(PATIENCE)
    _wait_for(PATIENCE)
    return control


def device_of_rank(environment: Mapping[str, str], gpus: int) -> torch.device:
    """The GPU with the rank's number on its machine; the CPU where there is no GPU, or SIDREC_DEVICE is cpu.

    environment: torchrun's variables, and SIDREC_DEVICE: cpu or cuda. gpus: that this process sees.
    Raises ConfigError for more ranks than GPUs, SIDREC_DEVICE=cuda without a GPU, and other values of it.
    """
    wanted = environment.get("SIDREC_DEVICE") or ("cuda" if gpus else "cpu")
    if wanted not in ("cpu", "cuda"):
        raise ConfigError(f"SIDREC_DEVICE: expected cpu or cuda, got {wanted!r}")
    if wanted == "cpu":
        return torch.device("cpu")
    if not gpus:
        raise ConfigError("SIDREC_DEVICE: expected cpu where torch sees no GPU, got 'cuda'")
    ranks = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if ranks > gpus:
        fix = f"start {gpus} on each machine, or train on CPU with SIDREC_DEVICE=cpu"
        raise ConfigError(f"ranks: expected at most one for each GPU that torch sees, {gpus}, got {ranks}; {fix}")
    return torch.device("cuda", int(environment.get("LOCAL_RANK", "0")))


NCCL_DEFAULTS = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
"""Unless the environment sets them: NCCL's flight recorder keeps the last collectives, which the watchdog writes down,
and NCCL itself if a collective outlasts its timeout."""

JOINED_WITHIN = timedelta(minutes=5)
"""How long ranks wait for one another to connect: torchruns start their ranks at one time."""

PATIENCE = timedelta(minutes=30)
"""How long a collective waits for other ranks. NCCL's own 10 minutes are as long as train.hang_minutes: it
would abort the process before the watchdog names the ranks that are behind."""


def outlast(minutes: float) -> None:
    """Lets the collectives of every group wait for twice as long as `minutes`, and at least PATIENCE.

    TorchRec makes groups of its own, for ranks of one machine. All ranks call it.
    """
    _wait_for(max(PATIENCE, 2 * timedelta(minutes=minutes)))


def _wait_for(patience: timedelta) -> None:
    """Sets the timeout of every group."""
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(patience, group)


def _silence_torchrec() -> None:
    """Silences warnings about TorchRec's internals, about which a user can do nothing."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
    warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen_lookup_function", category=UserWarning)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    for name in ("planner.types", "planner.storage_reservations", "comm", "utils"):
        logging.getLogger(f"torchrec.distributed.{name}").setLevel(logging.ERROR)
    # A line for every replicated table, which the planner writes to the root logger.
    logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("Sharding spec not found"))


_LOST = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "pair closure",
    "NCCL communicator was aborted",
    "NCCL error",
)
"""Parts of the RuntimeErrors that gloo and NCCL raise when the other rank is gone."""


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST)


def _lost_rank(error: RuntimeError) -> str:
    reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0] or type(error).__name__
    return (
        f"rank {dist.get_rank()} lost its connection to another rank, which has died: that rank's own last words, or "
        f"the machine's log (killed for memory?), say why ({reason})"
    )


def run_on_all_ranks(ranks: Ranks, action: Callable[[], T]) -> T:
    """Runs `action` on every rank and returns its result. If it fails on any rank, all raise (`raise_on_all_ranks`)."""
    result: list[T] = []
    error: Exception | None = None
    try:
        result.append(action())
    except Exception as problem:
        error = problem
    raise_on_all_ranks(ranks, error)
    return result[0]


def raise_on_all_ranks(ranks: Ranks, error: Exception | None) -> None:
    """Raises on every rank if any rank passes an error. All ranks call it.

    Raises: this rank's own error; RankError if it has none, or the same one as a lower rank, so that each message is
    printed once.
    """
    messages = gather_objects(ranks, None if error is None else f"{error}")
    first_ranks = {text: rank for rank, text in reversed(list(enumerate(messages))) if text is not None}
    if error is not None and first_ranks[f"{error}"] == ranks.rank:
        raise error
    if first_ranks:
        rank, text = min((rank, text) for text, rank in first_ranks.items())
        raise RankError(f"rank {rank} stopped: {text}") from error


def of_machine(ranks: Ranks, value: T) -> T:
    """The `value` of the first rank on this rank's machine. torchrun numbers ranks machine by machine."""
    return gather_objects(ranks, value)[ranks.rank - int(os.environ.get("LOCAL_RANK", "0"))]


def gather_objects(ranks: Ranks, value: T) -> list[T]:
    """Every rank's `value`, by rank, on all ranks."""
    values = [value] * ranks.world
    if ranks.world > 1:
        ranks.heartbeat.beat(WAITS)
        dist.all_gather_object(values, value, group=ranks.control)
        ranks.heartbeat.beat(COMPUTES)
    return values


def broadcast_object(ranks: Ranks, value: T) -> T:
    """Rank 0's `value` on all ranks; other ranks' values are ignored."""
    values = [value]
    if ranks.world > 1:
        ranks.heartbeat.beat(WAITS)
        dist.broadcast_object_list(values, src=0, group=ranks.control)
        ranks.heartbeat.beat(COMPUTES)
    return values[0]


def total(ranks: Ranks, value: int) -> int:
    """The sum of every rank's `value`."""
    values = torch.tensor([value], dtype=torch.int64)
    dist.all_reduce(values, group=ranks.control)
    return int(values)


def largest(ranks: Ranks, value: int) -> int:
    """The largest `value` of any rank."""
    return LargestEach(ranks, [value]).wait()[0]


class LargestEach:
    """The element-wise maximum of all ranks' `values`: they are exchanged in the background until `wait`.

    One collective. The length is the same on every rank. All ranks begin their collectives in the same order.
    """

    def __init__(self, ranks: Ranks, values: Sequence[int]) -> None:
        self._ranks, self._values, self._found = ranks, values, torch.tensor(values, dtype=torch.int64)
        self._work: Any = None
        if ranks.world > 1:
            self._work = dist.all_reduce(self._found, dist.ReduceOp.MAX, group=ranks.control, async_op=True)

    def wait(self) -> list[int]:
        if self._work is None:
            return list(self._values)
        self._ranks.heartbeat.beat(WAITS)
        self._work.wait()
        self._ranks.heartbeat.beat(COMPUTES)
        return [int(value) for value in self._found]


class HostCopy:
    """Tensors on their way from the device to the host, which `receive` reads some work later.

    On a GPU: copies into pinned memory, queued with the device's other work. `receive` waits for these copies, and for
    nothing that was queued after them. On a CPU: copies.
    """

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        self._values: list[Tensor] | None = None

    @property
    def sent(self) -> bool:
        """Whether there is something to receive."""
        return self._values is not None

    def send(self, *values: Tensor) -> None:
        """Begins to copy the values. What was sent before must have been received."""
        assert self._values is None, "the values sent before are received first"
        pinned = self._event is not None
        self._values = [torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned) for value in values]
        for copied, value in zip(self._values, values, strict=True):
            copied.copy_(value.detach(), non_blocking=True)
        if self._event is not None:
            self._event.record()

    def receive(self) -> list[Tensor]:
        """The values, on the host. Waits until they have arrived."""
        assert self._values is not None, "values are sent before they are received"
        if self._event is not None:
            self._event.synchronize()
        values, self._values = self._values, None
        return values
