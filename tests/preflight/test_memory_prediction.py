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
run = plan_here(load_file(Path(sys.argv[1])), torch.device("cpu"), int(sys.argv[2]))
estimates = estimate_ranks(run, largest_group=50, starting=psutil.Process().memory_info().rss)
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


@pytest.mark.parametrize(("world", "background"), [(1, True), (2, False)])
def test_a_rank_takes_the_predicted_memory(world: int, background: bool, tmp_path: Path) -> None:
    """Two epochs, as the last checkpoint of a run is never written in the background."""
    write_small_log(tmp_path, rows=1500)
    log = tmp_path / "data" / LOG
    manifest = load_manifest(log)
    save_manifest(replace(manifest, ids={**manifest.ids, "user_id": 1_000_000}), log)
    model = {"embedding_dim": 32, "context": ["user_id", "cat_a"]}
    checkpoint = {"background": background}
    recipe = small_recipe(tmp_path, data={"workers": 1}, model=model, train={"epochs": 2}, checkpoint=checkpoint)
    save(recipe, tmp_path / "recipe.yaml")
    command = [sys.executable, "-c", PREDICT, str(tmp_path / "recipe.yaml"), str(world)]
    predicted = int(subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout)
    assert _largest(tmp_path / "recipe.yaml", world) == pytest.approx(predicted, rel=TOLERANCE)


def _largest(recipe: Path, world: int) -> int:
    """Highest resident size, in bytes, of the largest process that was waited for: the ranks, not their loaders.

    The kernel counts what a process was before its exec, a copy of its parent: so the parent is a small one.
    """
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    command = [sys.executable, *launch, "-m", "sidrec", "train", str(recipe)]
    watch = [sys.executable, "-c", WATCH, *command]
    return int(subprocess.run(watch, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout)
