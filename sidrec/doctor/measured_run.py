"""How long a run will take: from the log of an earlier run, or from steps that are trained and timed now.

`python -m sidrec.doctor.measured_run RECIPE STEPS` trains and times steps. It writes nothing into the run directory;
rank 0 prints the result as JSON on its last line. `measure` starts it as a subprocess.

Shapes: S steps, or lines of a log.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from sidrec.config import ConfigError, Recipe, load_file, load_saved, save
from sidrec.errors import SidrecError, print_error
from sidrec.parallel.process_group import Ranks, gather_objects, joined_ranks
from sidrec.preflight import Finding
from sidrec.train.assembly import build_training, open_dataset, open_loader
from sidrec.train.step import TrainingStep
from sidrec.train.stopping import synced_batches

WARM_UP, STEPS = 5, 50
"""Steps that are not timed, and steps that are."""
LEAST = 3
"""Least number of logged or measured steps for a rate. The first logged one is left out: it includes the startup."""
SECONDS = 900
"""Time limit of the subprocess."""
ERROR_PREFIX = "sidrec: error: "


@dataclass(frozen=True)
class Rate:
    """Samples per second over all ranks: 10% quantile, median and 90% quantile. source: origin and conditions."""

    p10: float
    p50: float
    p90: float
    source: str

    @classmethod
    def of(cls, samples_per_second_S: Sequence[float], source: str) -> "Rate":
        """Quantiles of at least one measurement."""
        p10, p50, p90 = np.quantile(samples_per_second_S, [0.1, 0.5, 0.9]).tolist()
        return cls(p10, p50, p90, source)


def measure(recipe: Recipe, world: int) -> tuple[Rate, int]:
    """Trains STEPS steps on `world` ranks of this machine.

    Returns their rate, and the private bytes of all ranks and loader processes after them. Raises ConfigError if the
    steps fail.
    """
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    with tempfile.TemporaryDirectory(prefix="sidrec-doctor-") as folder:
        save(recipe, Path(folder) / "recipe.yaml")
        command = [sys.executable, *launch, "-m", __name__, str(Path(folder) / "recipe.yaml"), str(STEPS)]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise ConfigError(f"measuring: expected {STEPS} steps within {SECONDS} s, got none") from None
    if done.returncode:
        raise ConfigError(f"measuring: {_error_message(done)}")
    facts = json.loads(done.stdout.splitlines()[-1])
    words = f"as measured just now over {len(facts['speeds'])} steps on {world} rank(s)"
    return Rate.of(facts["speeds"], words), int(facts["memory"])


def _error_message(failed: subprocess.CompletedProcess[str]) -> str:
    """The first error that sidrec printed, else the last error line on stderr."""
    lines = failed.stderr.splitlines()
    own = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
    errors = [line.strip() for line in lines if "Error: " in line]
    return (own or errors[-1:] or [f"expected {STEPS} steps, got exit status {failed.returncode}"])[0]


def main(argv: Sequence[str]) -> None:
    """Trains the first steps of the recipe. Raises what training raises, and ConfigError for too few steps."""
    recipe, wanted = load_file(Path(argv[0])), int(argv[1])
    with joined_ranks() as ranks:
        seconds_S, memory = _train(recipe, wanted, ranks)
        if ranks.first:
            speeds = [recipe.data.batch_size / seconds for seconds in seconds_S]
            print(json.dumps({"speeds": speeds, "memory": memory}), flush=True)


def _train(recipe: Recipe, wanted: int, ranks: Ranks) -> tuple[list[float], int]:
    """Seconds of each step on the slowest rank, and private bytes of all ranks."""
    data = open_dataset(recipe, ranks)
    loader = open_loader(recipe, data, recipe.data.train_on, shuffle=True, ranks=ranks)
    steps = min(WARM_UP + wanted, loader.steps)
    if steps < WARM_UP + LEAST:
        raise ConfigError(f"expected an epoch of at least {WARM_UP + LEAST} steps, got {loader.steps}")
    training = build_training(recipe, data, ranks)
    kind = recipe.parallel.pipeline
    step = TrainingStep(training.model, training.optimizer, loader.reader, recipe.train, kind, 0, ranks)
    training.model.train()
    batches = synced_batches(loader.packed_batches(0), loader.steps, ranks)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step.run(batches)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
        seconds.append(time.perf_counter() - started)
    measured = gather_objects(ranks, (seconds[WARM_UP:], private_bytes(os.getpid())))
    return np.max([found for found, _ in measured], axis=0).tolist(), sum(memory for _, memory in measured)


def private_bytes(process: int) -> int:
    """Private bytes of a process and of its descendants; shared memory is left out."""
    parent = psutil.Process(process)
    sizes = []
    for each in (parent, *parent.children(recursive=True)):
        try:
            sizes.append(each.memory_full_info().uss)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # the process has just ended
    return sum(sizes)


def duration_finding(recipe: Recipe, train_rows: int, rate: Rate | None) -> Finding:
    """The time of the whole run at that rate, without evaluation and checkpoints. rate: None if unknown."""
    if rate is None:
        return Finding("duration", "note", "unknown until the first steps are done", "sidrec doctor RECIPE --measure")
    rows = recipe.train.epochs * train_rows
    usual, fast, slow = (timedelta(seconds=round(rows / speed)) for speed in (rate.p50, rate.p90, rate.p10))
    speeds = f"{rate.p50:,.0f} samples/s (p10 {rate.p10:,.0f}, p90 {rate.p90:,.0f})"
    found = f"about {usual} ({fast} to {slow}) for {rows:,} rows at {speeds}, {rate.source}; evaluation comes on top"
    return Finding("duration", "ok", found)


def logged_rate(recipe: Recipe, world: int) -> Rate | None:
    """The rate of the latest run with the recipe's name that logged enough steps; None if there is none.

    Its source names differing conditions: ranks and batch size.
    """
    logs = (recipe.train.runs / recipe.name).glob("seed*/metrics.jsonl")
    for log in sorted(logs, key=lambda path: path.stat().st_mtime, reverse=True):
        speeds = _speeds(log)[1:]
        if len(speeds) >= LEAST:
            return Rate.of(speeds, f"as {log.parent} logged {_conditions(log.parent, recipe, world)}")
    return None


def _speeds(log: Path) -> list[float]:
    found = []
    for line in log.read_text(encoding="utf-8").splitlines():
        speed = _object(line).get("samples_per_second")
        if isinstance(speed, (int, float)) and speed > 0:
            found.append(float(speed))
    return found


def _conditions(run: Path, recipe: Recipe, world: int) -> str:
    facts = _object((run / "run.json").read_text(encoding="utf-8")) if (run / "run.json").is_file() else {}
    ranks, device, threads = (facts.get(name, "unknown") for name in ("ranks", "device", "threads_per_rank"))
    conditions = f"on {ranks} rank(s), {device}, {threads} thread(s) each"
    try:
        before: int | None = load_saved(run / "config.yaml").data.batch_size
    except ConfigError:
        before = None
    conditions += f", batches of {before or 'unknown size'}"
    others = [f"{world} rank(s)"] if ranks != world else []
    others += [f"batches of {recipe.data.batch_size}"] if before != recipe.data.batch_size else []
    return f"{conditions}, while this is for {' and '.join(others)}" if others else conditions


def _object(text: str) -> dict[str, Any]:
    """The JSON object in `text`; {} for anything else, such as an incomplete line of a killed process."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (SidrecError, OSError) as failure:
        print_error(failure)
        raise SystemExit(2) from None
