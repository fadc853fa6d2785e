"""Some real steps of a recipe, timed, in processes of their own: `python -m sidrec.doctor.measured_run RECIPE STEPS`.

Writes nothing into the run directory. Rank 0 prints the result as JSON on its last line.

Shapes: W ranks, S steps.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import distributed as dist

from sidrec.config import ConfigError, Recipe, load_file, save
from sidrec.failure import LearningError, say
from sidrec.parallel.process_group import Ranks, joined_ranks
from sidrec.preflight.duration import LEAST, Rate
from sidrec.schema import ContractError
from sidrec.train.agreed_batches import agreed_batches
from sidrec.train.assembly import build_model, open_loader
from sidrec.train.data import open_data
from sidrec.train.non_finite import StepGuard
from sidrec.train.optimizers import build_optimizer
from sidrec.train.pipelines import guarded_pipeline

WARM_UP, STEPS = 5, 50
SAID = "sidrec: "
SECONDS = 900


def measure(recipe: Recipe, world: int) -> tuple[Rate, int]:
    """The rate of some steps on `world` ranks of this machine, and bytes that all ranks and their loader processes had
    to themselves after them. Raises ConfigError where they fail."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    with tempfile.TemporaryDirectory(prefix="sidrec-doctor-") as folder:
        save(recipe, Path(folder) / "recipe.yaml")
        command = [sys.executable, *launch, "-m", __name__, str(Path(folder) / "recipe.yaml"), str(STEPS)]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise ConfigError(f"measuring: expected {STEPS} steps within {SECONDS} s, got none") from None
    if done.returncode:
        raise ConfigError(f"measuring: {_sentence(done)}")
    facts = json.loads(done.stdout.splitlines()[-1])
    words = f"as measured just now over {len(facts['speeds'])} steps on {world} rank(s)"
    return Rate.of(facts["speeds"], words), int(facts["memory"])


def _sentence(failed: subprocess.CompletedProcess[str]) -> str:
    """What the processes said of their failure, or the last error among their words."""
    lines = failed.stderr.splitlines()
    said = [line.removeprefix(SAID) for line in lines if line.startswith(SAID)]
    errors = [line.strip() for line in lines if "Error: " in line]
    return (said or errors[-1:] or [f"expected {STEPS} steps, got exit status {failed.returncode}"])[0]


def main(argv: Sequence[str]) -> None:
    """Trains the first steps of the recipe. Raises as training does, and ConfigError for too few steps."""
    recipe, wanted = load_file(Path(argv[0])), int(argv[1])
    with joined_ranks() as ranks:
        seconds_S, memory = _train(recipe, wanted, ranks)
        if ranks.first:
            speeds = [recipe.data.batch_size / seconds for seconds in seconds_S]
            print(json.dumps({"speeds": speeds, "memory": memory}), flush=True)


def _train(recipe: Recipe, wanted: int, ranks: Ranks) -> tuple[list[float], int]:
    """Seconds of each step, of the slowest rank; and memory over all ranks."""
    data = open_data(recipe, ranks)
    loader = open_loader(recipe, data, "train", shuffle=True, ranks=ranks)
    steps = min(WARM_UP + wanted, loader.steps)
    if steps < WARM_UP + LEAST:
        raise ConfigError(f"expected an epoch of at least {WARM_UP + LEAST} steps, got {loader.steps}")
    sharded = build_model(recipe, data, ranks)
    optimizer = build_optimizer(sharded.model, recipe.optimizer, recipe.model.embedding_dim)
    guard = StepGuard(sharded.model, optimizer, loader.reader, recipe.train, 0, ranks)
    pipeline = guarded_pipeline(recipe.parallel.pipeline, sharded.model, optimizer, ranks.device, guard)
    sharded.model.train()
    batches = agreed_batches(loader.batches(0), loader.steps, ranks)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        pipeline.progress(batches)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
        seconds.append(time.perf_counter() - started)
    every: list[tuple[list[float], int]] = [([], 0)] * ranks.world
    dist.all_gather_object(every, (seconds[WARM_UP:], private_bytes(os.getpid())), group=ranks.control)
    return np.max([found for found, _ in every], axis=0).tolist(), sum(memory for _, memory in every)


def private_bytes(process: int) -> int:
    """Bytes that a process and all it started have to themselves; what they share is left out."""
    parent = psutil.Process(process)
    sizes = []
    for each in (parent, *parent.children(recursive=True)):
        try:
            sizes.append(each.memory_full_info().uss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has just ended
    return sum(sizes)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ConfigError, ContractError, LearningError, OSError) as failure:
        say(failure)
        raise SystemExit(2) from None
