"""What goes wrong on one rank ends all ranks, at once, and is said once."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import distributed as dist
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.types import PlannerError, PlannerErrorType

from sidrec.config import Recipe, save
from sidrec.errors import SidrecError
from sidrec.io.places import local_path
from sidrec.parallel.process_group import Ranks
from sidrec.train.run import train
from tests.ranks import run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.train.refusals import TRAIN, put

ROOT = Path(__file__).parents[2]


def outcomes(
    rank: int, world: int, folders: list[Path], recipes: list[Recipe], no_plan: Recipe
) -> list[tuple[str, str]]:
    """Per case the error's type and sentence on this rank. folders: where each rank is, as on a machine of its own."""
    os.chdir(folders[rank])
    ranks = Ranks(rank, world, torch.device("cpu"), 1, dist.new_group(backend="gloo"))
    found = [outcome(recipe, ranks) for recipe in recipes]
    EmbeddingShardingPlanner.plan = refuse_to_plan
    return [*found, outcome(no_plan, ranks)]


def outcome(recipe: Recipe, ranks: Ranks) -> tuple[str, str]:
    try:
        train(recipe, ranks)
    except SidrecError as error:
        return type(error).__name__, str(error)
    return "", ""


def refuse_to_plan(*_: object) -> None:
    raise PlannerError("no room", PlannerErrorType.INSUFFICIENT_STORAGE)


def test_two_ranks_leave_together_and_one_speaks(tmp_path: Path) -> None:
    write_small_log(tmp_path / "one", rows=800)
    write_small_log(tmp_path / "other", rows=800)
    (tmp_path / "other" / TRAIN).unlink()
    sound = small_recipe(tmp_path / "one")
    own = replace(sound, data=replace(sound.data, path=Path("data"), catalog=Path("catalog")))
    lanes = replace(sound, data=replace(sound.data, lanes=3, batch_size=63))
    write_small_log(tmp_path / "row", rows=800)
    put(tmp_path / "row" / TRAIN, "label", 420, 3.0)
    row = small_recipe(tmp_path / "row", checkpoint={"every": 0}, train={"epochs": 1})

    folders = [tmp_path / "one", tmp_path / "other"]
    first, second = run_on_ranks(2, outcomes, folders, [lanes, own, row], sound)

    assert first[0] == ("ConfigError", "data.lanes: expected a multiple of the number of ranks = 2, got 3")
    assert second[0] == ("RankError", f"rank 0 stopped: {first[0][1]}")
    missing = f"{TRAIN}: expected a parquet file, as the manifest says, got no such file"
    assert (first[1], second[1]) == (("RankError", f"rank 1 stopped: {missing}"), ("ContractError", missing))
    place = f"{tmp_path / 'row' / TRAIN}, row group 8, row 420 of the file, column label: expected 0 or 1, got 3.0"
    met = [rank for rank, found in enumerate((first, second)) if found[2] == ("ContractError", place)]
    assert len(met) == 1
    assert (second, first)[met[0]][2] == ("RankError", f"rank {met[0]} stopped: {place}")
    assert not (row.run / "config.yaml").exists(), "the corrected recipe could not start"
    assert first[3] == ("PlanError", "no sharding plan for parallel.sharding=auto: no room")
    assert second[3] == ("RankError", f"rank 0 stopped: {first[3][1]}")


def damage(path: Path, group: int) -> None:
    """Overwrites a column of one row group: the footer stays sound, so that nobody notices before it is read."""
    column = pq.read_metadata(path).row_group(group).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)


def start(recipe: Recipe, *launcher: str) -> subprocess.Popen[str]:
    path = local_path(recipe.data.path, "data.path").parent / "recipe.yaml"
    save(recipe, path)
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "sidrec.train", str(path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_under_torchrun_the_message_is_printed_once_and_is_in_the_report(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=1600)
    damage(tmp_path / TRAIN, 31)  # in time order the last group of the last lane, which rank 1 reads
    recipe = small_recipe(tmp_path, data={"workers": 1, "order": "time"}, train={"log_every": 1})
    process = start(recipe, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    lines = output.splitlines()
    sentence = f"sidrec: error: {tmp_path / TRAIN}, row group 31: expected readable column data, got "
    assert sum(line.startswith(sentence) for line in lines) == 1
    assert sum(line.startswith("Traceback") for line in lines) == 1, f"more than torchrun's own:\n{output}"
    assert sentence.removeprefix("sidrec: error: ") in output[output.index("Root Cause") :]
    assert any(line.startswith("step 1/") for line in lines), "the damage should be met in the middle of an epoch"
    assert not (recipe.run / "config.yaml").exists()
