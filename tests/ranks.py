"""Real gloo ranks for tests: one process each, one thread each, with the failing rank's traceback and a time limit.

Use::

    def _sum(rank: int, world: int, value: float) -> float: ...      # defined at the top of a test module

    assert run_on_ranks(2, _sum, 3.0) == [6.0, 6.0]                   # one result per rank, in rank order
"""

import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import multiprocessing

from sidrec import cli
from sidrec.parallel.process_group import Ranks

PRELOADED = ["torchrec.distributed", "sidrec.train.run", "sidrec.metrics.auc", "matplotlib.figure", "pytest"]
"""Imported once by the process that ranks are forked from: seconds less for every rank of every test."""

_server = forkserver.ForkServer()
"""The process that ranks are forked from. That of multiprocessing may have been started by a loader, whose workers need
few imports: ranks forked from it would each import TorchRec."""
_server.set_forkserver_preload(PRELOADED)


class RankError(AssertionError):
    """A rank failed or hung; the message holds each failing rank's traceback, the first to fail first."""


def run_on_ranks(ranks: int, function: Callable[..., Any], *args: Any, timeout: float = 1200.0) -> list[Any]:
    """Runs `function(rank, ranks, *args)` in `ranks` new processes joined in a gloo process group.

    function: defined at the top level of a module; it, its arguments and its results must pickle.
    timeout: seconds, start-up included; then all ranks are killed. Collectives wait longer than that. The default is
        a safety net that load does not reach: a rank that fails ends the test at once.

    Returns: the results, in rank order. Raises RankError as soon as one rank fails, dies or the time is up.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        context = multiprocessing.get_context("forkserver")
        processes = [
            context.Process(target=_run_rank, args=(rank, ranks, function, args, folder, timeout))
            for rank in range(ranks)
        ]
        try:
            start_from_warm(processes)
            _wait(processes, Path(folder), timeout)
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
        return [pickle.loads((Path(folder) / f"result-{rank}").read_bytes()) for rank in range(ranks)]


def status_of_a_fork(words: Sequence[str]) -> int | None:
    """The exit status of `sidrec WORDS` in a new process, which knows imports and nothing else."""
    process = multiprocessing.get_context("forkserver").Process(target=_run_command, args=(words,))
    start_from_warm([process])
    process.join()
    return process.exitcode


def _run_command(words: Sequence[str]) -> None:
    torch.set_num_threads(1)
    sys.exit(cli.main(words))


def start_from_warm(processes: Sequence[BaseProcess]) -> None:
    """Starts processes of the context "forkserver" as forks of a process that has imported PRELOADED."""
    with patch.object(forkserver, "connect_to_new_process", _server.connect_to_new_process):
        for process in processes:
            process.start()


def joined(rank: int, world: int) -> Ranks:
    """What the product calls its ranks, for a function that `run_on_ranks` has started."""
    return Ranks(rank, world, torch.device("cpu"), 1, dist.new_group(backend="gloo"))


def _run_rank(
    rank: int, ranks: int, function: Callable[..., Any], args: tuple[Any, ...], folder: str, timeout: float
) -> None:
    torch.set_num_threads(1)
    # The variables torchrun would set, for code that reads them.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
    try:
        store = f"file://{folder}/store"
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout + 600)
        )
        result = function(rank, ranks, *args)
        _write(Path(folder) / f"result-{rank}", pickle.dumps(result))
        dist.barrier()  # no rank leaves while another still talks to it
        dist.destroy_process_group()
    except BaseException:
        _write(Path(folder) / f"error-{rank}", traceback.format_exc().encode())
        os._exit(1)  # destroying the group would wait for ranks that wait for this one


def _write(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


def _wait(processes: list[Any], folder: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes):
            break
        if time.monotonic() > deadline:
            hanging = [rank for rank, process in enumerate(processes) if process.exitcode is None]
            raise RankError(f"ranks {hanging} still run after {timeout:.0f} s{_tracebacks(folder)}")
        time.sleep(0.01)
    failed = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
    if failed:
        raise RankError(f"ranks failed, rank to exit code: {failed}{_tracebacks(folder)}")


def _tracebacks(folder: Path) -> str:
    errors = sorted(folder.glob("error-*[0-9]"), key=lambda path: path.stat().st_mtime_ns)
    return "".join(f"\n\n{path.name.removeprefix('error-')}: {path.read_text()}" for path in errors)
