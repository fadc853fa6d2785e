"""Checkpoints are there whole or not at all, written beside training; what happens when one cannot be written."""

import re
import resource
import shutil
import threading
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from sidrec.checkpoint.checkpoint_store import Saver, checkpoints, fault_of
from sidrec.checkpoint.dcp_storage import load_shards, save_shards
from sidrec.checkpoint.tensor_shard import TensorShard, read_index
from sidrec.checkpoint.train_state import Best, Position, read_best, read_position
from sidrec.config.recipe import CheckpointConfig
from sidrec.errors import CheckpointError, RankError
from sidrec.parallel.process_group import Ranks
from tests.ranks import joined, run_on_ranks

ROWS, WIDTH = 8, 1 << 14  # 256 KiB for each of two ranks
BESIDE = {"config.yaml": "name: a\n"}


def own_rows(ranks: Ranks, values_RD: torch.Tensor) -> list[TensorShard]:
    share = ROWS // ranks.world
    first = ranks.rank * share
    return [TensorShard("table", (ROWS, WIDTH), (first, 0), values_RD[first : first + share])]


def at(step: int, best: Best | None = None) -> Position:
    return Position(step, 0, step, "f", best=best)


def loaded(path: Path, ranks: Ranks) -> torch.Tensor:
    values_RD = torch.zeros(ROWS, WIDTH)
    load_shards(path, read_index(path), [TensorShard("table", (ROWS, WIDTH), (0, 0), values_RD)], ranks.control)
    return values_RD


def train_and_save(rank: int, world: int, folder: Path, background: bool) -> None:
    """Adds 1 to the table after every save, at once: a checkpoint must hold what was there when it was asked for."""
    ranks = joined(rank, world)
    saver = Saver(folder, CheckpointConfig(keep=2, background=background), BESIDE, ranks)
    values_RD = torch.zeros(ROWS, WIDTH)
    shards = own_rows(ranks, values_RD)
    for step in (1, 2, 3, 4):
        saver.save(shards, at(step, Best("validation", "auc", 0.5, 1)))
        values_RD += 1
    saver.finish()
    assert [path.name for path in checkpoints(folder)] == ["step-4", "step-3", "step-1"], "the newest two and the best"
    for path in checkpoints(folder):
        position = read_position(path)
        assert fault_of(path, ranks) is None
        assert torch.equal(loaded(path, ranks), torch.full((ROWS, WIDTH), position.step - 1.0))
        assert (path / "config.yaml").read_text() == BESIDE["config.yaml"]
    assert read_best(folder / "best.json").step == 1
    saver.save(shards, at(4), wait=True)
    assert torch.equal(loaded(folder / "step-4", ranks), torch.full((ROWS, WIDTH), 3.0)), "it was there already"


@pytest.mark.parametrize("background", [True, False])
def test_every_checkpoint_holds_its_own_step(background: bool, tmp_path: Path) -> None:
    run_on_ranks(2, train_and_save, tmp_path, background)
    assert not list(tmp_path.glob("*.partial"))


def save_beside_training(rank: int, world: int, folder: Path) -> None:
    """A write that is held up does not hold up training; it is waited for by the next save."""
    ranks = joined(rank, world)
    (folder / "step-9.partial").mkdir(exist_ok=True)
    torch.distributed.barrier()
    let_go = threading.Event()
    shards = own_rows(ranks, torch.zeros(ROWS, WIDTH))

    def held_up(*args: Any) -> None:
        assert let_go.wait(600)
        save_shards(*args)

    saver = Saver(folder, CheckpointConfig(), BESIDE, ranks, held_up)
    saver.save(shards, at(1))
    assert checkpoints(folder) == []
    let_go.set()
    saver.save(shards, at(2))
    assert folder / "step-1" in checkpoints(folder)
    saver.finish()


def test_training_continues_during_the_write(tmp_path: Path) -> None:
    run_on_ranks(2, save_beside_training, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"], "left-overs are removed"


def failing(rank: int, world: int, folder: Path, kind: str) -> tuple[list[str], str, str]:
    """Saves until training must stop; the failure starts after step 1.

    Returns: the checkpoints that are there in the end, what is said meanwhile, and the error that stops.
    """
    ranks = joined(rank, world)
    saver = Saver(folder, CheckpointConfig(failures=2), BESIDE, ranks)
    values_RD = torch.zeros(ROWS, WIDTH)
    saver.save(own_rows(ranks, values_RD), at(1))
    saver.finish()
    end = FAILURES[kind](rank, folder)
    saver.save(own_rows(ranks, values_RD), at(2))
    with redirect_stderr(StringIO()) as said:
        saver.save(own_rows(ranks, values_RD), at(3))  # meets the failure of step 2, and goes on
    with pytest.raises((CheckpointError, RankError)) as stopped:
        saver.save(own_rows(ranks, values_RD), at(5))
    end()
    saver = Saver(folder, CheckpointConfig(failures=2), BESIDE, ranks)
    saver.save(own_rows(ranks, values_RD), at(4))
    saver.finish()
    return (
        [path.name for path in checkpoints(folder)],
        said.getvalue(),
        f"{type(stopped.value).__name__}: {stopped.value}",
    )


def disk_ends(rank: int, folder: Path) -> Callable[[], None]:
    """The second rank cannot write a file of more than 64 KiB: what ranks tell each other through files goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def folder_goes(rank: int, folder: Path) -> Callable[[], None]:
    aside = folder.with_name("aside")
    if rank == 0:
        folder.replace(aside)
        folder.write_text("a file in its place")

    def back() -> None:
        if rank == 0:
            folder.unlink()
            aside.replace(folder)
        torch.distributed.barrier()

    return back


def no_room(rank: int, folder: Path) -> Callable[[], None]:
    usage = shutil.disk_usage(folder)
    patched = patch.object(shutil, "disk_usage", lambda _: usage._replace(free=100))
    patched.start()
    return patched.stop


FAILURES: dict[str, Callable[[int, Path], Callable[[], None]]] = {
    "disk ends": disk_ends,
    "folder goes": folder_goes,
    "no room": no_room,
}
SENTENCES = {
    "disk ends": r"step-\d.partial.*: rank 1: File too large",
    "folder goes": r": Not a directory",
    "no room": r": expected room for a checkpoint of 524,288 bytes, got 100",
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_checkpoint_that_cannot_be_written(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (left, *first), (_, *second) = run_on_ranks(2, failing, folder, kind)
    assert left == ["step-4", "step-1"], "what was there stays, what failed leaves nothing"
    assert not list(folder.glob("*.partial"))
    for sentence, count in ((first[0] + second[0], "1 in a row"), (first[1] + second[1], "2 in a row failed")):
        assert len(re.findall(f"{count}: .*{SENTENCES[kind]}", sentence)) >= 1, sentence
    assert sorted(bool(said) for said in (first[0], second[0])) == [False, True], "one rank speaks"
    assert sorted(error.split(":")[0] for error in (first[1], second[1])) == ["CheckpointError", "RankError"]


def last_fails(rank: int, world: int, folder: Path) -> None:
    ranks = joined(rank, world)
    saver = Saver(folder, CheckpointConfig(failures=9), BESIDE, ranks)
    shards = own_rows(ranks, torch.zeros(ROWS, WIDTH))
    end = no_room(rank, folder)
    saver.save(shards, at(1))
    with pytest.raises(CheckpointError, match="the last one failed"):
        saver.finish()
    with pytest.raises(CheckpointError, match="the last one failed"):
        saver.save(shards, at(2), wait=True)
    end()
    saver.save(shards, replace(at(2), ranks=world), wait=True)
    saver.finish()


def test_the_last_checkpoint_must_be_there(tmp_path: Path) -> None:
    run_on_ranks(1, last_fails, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-2"]
