"""The predicted memory of a rank, against the peak of the largest rank of a real run.

Tables of a million rows and their copy for a checkpoint are nearly half of it. The kernel's own record of the peak
resident size is read, because sampling would miss short peaks. Loader processes are left out.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sidrec.config import save
from sidrec.schema import LOG, load_manifest, save_manifest
from tests.small_log import small_recipe, write_small_log

TOLERANCE = 0.15
"""Allowed relative error. A prediction without the tables, or without the copy, would exceed it."""
PREDICT = """
import sys
from pathlib import Path
import psutil, torch
from sidrec.config import load_file
from sidrec.doctor.recipe_checks import plan_here
from sidrec.preflight.resource_estimate import estimate_ranks, total_bytes
from sidrec.train import run as entry
assert "matplotlib" not in sys.modules, "training draws nothing before its end"
words = zip(sys.argv[1::2], sys.argv[2::2])
runs = [plan_here(load_file(Path(recipe)), torch.device("cpu"), int(world)) for recipe, world in words]
starting = psutil.Process().memory_info().rss
for run in runs:
    estimates = estimate_ranks(run, largest_group=50, starting=starting)
    own = [[each for each in rank.host if "loader" not in each.name] for rank in estimates]
    print(max(map(total_bytes, own)))
"""
WATCH = """
import os, subprocess, sys
run = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(run.pid, 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


WORLDS = (1, 2)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """World -> a recipe of two epochs, as the last checkpoint of a run is never written in the background."""
    folder = tmp_path_factory.mktemp("memory")
    write_small_log(folder, rows=1500)
    log = folder / "data" / LOG
    manifest = load_manifest(log)
    save_manifest(replace(manifest, ids={**manifest.ids, "user_id": 1_000_000}), log)
    model = {"embedding_dim": 32, "context": ["user_id", "cat_a"]}
    found = {}
    for world in WORLDS:
        checkpoint = {"background": world == 1}
        recipe = small_recipe(
            folder, name=f"on-{world}", data={"workers": 1}, model=model, train={"epochs": 2}, checkpoint=checkpoint
        )
        found[world] = folder / f"{recipe.name}.yaml"
        save(recipe, found[world])
    return found


@pytest.fixture(scope="module")
def predicted(recipes: dict[int, Path]) -> dict[int, int]:
    """World -> bytes, all predicted by one process, of the size that a training has once it is planned."""
    words = [str(word) for world, recipe in recipes.items() for word in (recipe, world)]
    command = [sys.executable, "-c", PREDICT, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    return dict(zip(recipes, map(int, done.stdout.split()), strict=True))


@pytest.mark.parametrize("world", WORLDS)
def test_a_rank_takes_the_predicted_memory(world: int, recipes: dict[int, Path], predicted: dict[int, int]) -> None:
    assert _largest(recipes[world], world) == pytest.approx(predicted[world], rel=TOLERANCE)


def _largest(recipe: Path, world: int) -> int:
    """Highest resident size, in bytes, of the largest process that was waited for: the ranks, not their loaders.

    The kernel counts what a process was before its exec, a copy of its parent: so the parent is a small one.
    """
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    command = [sys.executable, *launch, "-m", "sidrec", "train", str(recipe)]
    watch = [sys.executable, "-c", WATCH, *command]
    return int(subprocess.run(watch, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout)
