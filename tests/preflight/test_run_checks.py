"""What training refuses at its start, and what it only says."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from sidrec import machine
from sidrec.errors import SidrecError
from sidrec.preflight import run_checks
from sidrec.preflight.capacity_check import AvailableResources
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.train.refusals import TEST, TRAIN, edit, recipe_of, refusal
from tests.train.refusals import start as start_training

LITTLE = AvailableResources(memory=50_000, limit=20_000_000_000, shared=10**9, device=0, disk=10**9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small_log(tmp_path)


def test_a_run_that_does_not_fit_is_refused_and_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (5_000_000, 20_000_000_000))
    sentence = refusal(capsys, start_training(recipe_of(folder, data={"workers": 1})))
    assert sentence.startswith("preflight: fits memory: 1 rank(s): expected about ")
    assert "got 5,000,000 free of 20 GB (change data.workers, data.shuffle_rows, " in sentence
    assert sentence.endswith("train.preflight: warn trains all the same")
    assert not (folder / "runs").exists()


def test_a_full_disk_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: here._replace(free=1000))
    assert "preflight: fits disk: the run directory: expected about " in refusal(
        capsys, start_training(recipe_of(folder))
    )
    assert not (folder / "runs").exists()


def test_warn_trains_all_the_same_and_a_run_may_go_on_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start_training(recipe_of(folder)) == 0
    assert "preflight: fine: fits memory, fits /dev/shm, fits disk, labels, values, " in capsys.readouterr().out
    monkeypatch.setattr(run_checks, "available_resources", lambda runs, device: LITTLE)
    assert start_training(recipe_of(folder), "--train.preflight", "warn", "--data.shuffle-rows", "100") == 0
    assert "preflight: fits memory  problem  1 rank(s): expected about " in capsys.readouterr().out


def test_labels_of_one_kind_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder / TRAIN, lambda table: table.set_column(0, "label", pa.array([0.0] * len(table), pa.float32())))
    assert refusal(capsys, start_training(recipe_of(folder))).startswith(
        "preflight: labels: expected zeros and ones, got: every label of train is 0 "
    )
    assert not (folder / "runs").exists()


def test_labels_of_one_kind_in_a_scored_split_are_a_note(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder / TEST, lambda table: table.set_column(0, "label", pa.array([0.0] * len(table), pa.float32())))
    assert start_training(recipe_of(folder)) == 0
    assert (
        "preflight: labels  note     expected zeros and ones, got: every label of test is 0" in capsys.readouterr().out
    )


def _train(rank: int, world: int, folder: str, sections: list[dict[str, object]], little_on: int) -> str:
    from sidrec.train.run import train

    if rank == little_on:
        pytest.MonkeyPatch().setattr(run_checks, "available_resources", lambda runs, device: LITTLE)
    os.environ["LOCAL_WORLD_SIZE"] = "1" if little_on >= 0 else str(world)  # two machines of one rank each
    os.environ["LOCAL_RANK"] = "0" if little_on >= 0 else str(rank)
    try:
        train(small_recipe(Path(folder), **sections[rank]), joined(rank, world))
    except SidrecError as error:
        return str(error)
    return ""


def test_the_memory_of_another_machine_counts(folder: Path) -> None:
    """Rank 1 is on a machine with little memory: rank 0 finds out and all leave."""
    first, second = run_on_ranks(2, _train, str(folder), [{}, {}], 1)
    assert first.startswith("preflight: fits memory: 1 rank(s) of machine 1: expected about ")
    assert second == f"rank 0 stopped: {first}"


def test_ranks_whose_recipes_differ_leave_before_they_read_anything(folder: Path) -> None:
    first, second = run_on_ranks(2, _train, str(folder), [{}, {"optimizer": {"dense": {"lr": 0.5}}}], -1)
    assert first == "optimizer.dense.lr: expected the same on all ranks, got 0.001 on rank 0 and 0.5 on rank 1"
    assert second == f"rank 0 stopped: {first}"
    assert not (folder / "runs").exists()
