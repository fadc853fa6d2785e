"""run_on_ranks itself: a test harness that cannot fail would hide everything else."""

import os
import sys
import time
from multiprocessing import forkserver

import pytest
import torch
import torch.distributed as dist

from tests.ranks import RankError, run_on_ranks


def _sum(rank: int, ranks: int, value: float) -> tuple[int, float, int]:
    total = torch.tensor(value * (rank + 1))
    dist.all_reduce(total)
    return rank, float(total), torch.get_num_threads()


def _fail_on_one(rank: int, ranks: int) -> None:
    if rank == 1:
        raise ValueError("rank one is broken")
    dist.barrier()


def _hang(rank: int, ranks: int) -> None:
    if rank == 0:
        time.sleep(600)


def _die(rank: int, ranks: int) -> None:
    if rank == 1:
        os._exit(7)
    time.sleep(600)


def _has_training(rank: int, ranks: int) -> bool:
    return "sidrec.train.run" in sys.modules


def test_ranks_know_the_trainer_although_another_fork_server_runs() -> None:
    forkserver.ensure_running()
    assert run_on_ranks(1, _has_training) == [True]


def test_ranks_reduce_and_return_in_rank_order() -> None:
    assert run_on_ranks(2, _sum, 10.0) == [(0, 30.0, 1), (1, 30.0, 1)]


def test_a_failing_rank_shows_its_traceback_while_the_other_waits() -> None:
    with pytest.raises(RankError, match=r"(?s)1: Traceback.*_fail_on_one.*rank one is broken"):
        run_on_ranks(2, _fail_on_one)


def test_a_rank_that_dies_without_a_word_is_named() -> None:
    with pytest.raises(RankError, match=r"\{1: 7\}"):
        run_on_ranks(2, _die)


def test_hanging_ranks_are_killed_and_named() -> None:
    with pytest.raises(RankError, match=r"ranks \[0, 1\] still run after 4 s"):
        run_on_ranks(2, _hang, timeout=4.0)
