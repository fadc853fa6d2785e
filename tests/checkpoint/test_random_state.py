"""Random generators go on where the checkpoint had them; other ranks draw anew, the same each time."""

import random
from pathlib import Path

import numpy as np
import torch

from sidrec.checkpoint.dcp_storage import save_shards
from sidrec.checkpoint.train_state import random_state_shards, restore_random_state
from tests.ranks import joined, run_on_ranks


def draw() -> list[float]:
    """Normal numbers come in pairs: the generators of numpy and Python keep the second for the next call."""
    return [float(torch.rand(())), np.random.normal(), random.gauss(0, 1), np.random.rand(), random.random()]


def save_and_draw(rank: int, world: int, path: Path) -> list[float]:
    ranks = joined(rank, world)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(rank)
    draw()
    save_shards(path, random_state_shards(ranks), rank, ranks.control)
    return draw()


def resume_and_draw(rank: int, world: int, path: Path, step: int) -> list[float]:
    ranks = joined(rank, world)
    restore_random_state(path, step, 3, ranks)
    return draw()


def test_the_same_ranks_go_on(tmp_path: Path) -> None:
    went_on = run_on_ranks(2, save_and_draw, tmp_path)
    assert went_on[0] != went_on[1]
    assert run_on_ranks(2, resume_and_draw, tmp_path, 7) == went_on
    (one,) = run_on_ranks(1, resume_and_draw, tmp_path, 7)
    assert not set(one) & {*went_on[0], *went_on[1]}, "one rank is none of the two"
    assert run_on_ranks(1, resume_and_draw, tmp_path, 7) == [one]
    assert run_on_ranks(1, resume_and_draw, tmp_path, 8) != [one]
