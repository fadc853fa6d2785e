"""Cost of a checkpoint to training, in the background and in the foreground, and time to resume.

    python -m benchmarks.checkpoint_cost [--shape small large] [--rounds 5] [--steps 20] [--folder DIR] [--write]
    torchrun --nproc-per-node 2 -m benchmarks.checkpoint_cost ...

One model, through the product's own loader, planner, optimizer, pipeline and saver, all in one process per rank. A
round trains equally many steps three times, in an order that rotates: without a checkpoint, with one that is written in
the background from the first step on, and with one that training waits for. They are at least `--steps`, and so many
that a background write ends before they do. --write adds to checkpoint_cost.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from torch import distributed as dist
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from benchmarks.step_time import SHAPES, Shape, write_data
from sidrec.checkpoint.checkpoint_store import Saver, newest_sound
from sidrec.checkpoint.state import load_model, state_shards
from sidrec.checkpoint.train_state import Position, random_state_shards, restore_random_state
from sidrec.config import Recipe
from sidrec.config.load import parse
from sidrec.config.recipe import CheckpointConfig
from sidrec.data.dataset import Dataset
from sidrec.machine import cores
from sidrec.parallel.process_group import Ranks, joined_ranks, largest, run_on_all_ranks, total
from sidrec.stack import find_stack
from sidrec.train.assembly import build_training, open_dataset, open_loader
from sidrec.train.optimizers import build_optimizer
from sidrec.train.step import check_state
from sidrec.train.stopping import synced_batches

SIZES: dict[str, tuple[Shape, int]] = {
    "small": (SHAPES["beauty"], 16),
    "large": (replace(SHAPES["beauty"], items=1_000_000, users=2_000_000), 64),
}
"""A log's shape, and the width of tables. Optimizer states are element-wise Adagrad's: as large as the tables."""
NONE, BACKGROUND, WAITED = "no checkpoint", "in the background", "waited for"
WARM_UP, KEPT_BATCHES = 5, 12
FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Block:
    """Some steps of training, and at most one checkpoint. Seconds of wall-clock and of this rank's CPU time.

    stall: wall-clock in which no step could run: the look at every value, the copy, or all of the writing.
    """

    wall: float
    cpu: float
    stall: float


class Training:
    """A model in training, as sidrec.train's Trainer drives it, on batches kept ready."""

    def __init__(self, recipe: Recipe, data: Dataset, folder: Path, ranks: Ranks) -> None:
        loader = open_loader(recipe, data, "train", shuffle=True, ranks=ranks)
        self._batches = cycle(list(synced_batches(loader.packed_batches(0), min(KEPT_BATCHES, loader.steps), ranks)))
        loader.close()
        self.model = build_training(recipe, data, ranks).model
        self.optimizer = build_optimizer(self.model, recipe.optimizer, recipe.model.embedding_dim)
        self._pipeline = TrainPipelineSparseDist(self.model, self.optimizer, ranks.device)
        self._savers = {
            name: Saver(folder, CheckpointConfig(keep=1, background=name == BACKGROUND), {}, ranks)
            for name in (BACKGROUND, WAITED)
        }
        self._saved, self._ranks = 0, ranks
        self.model.train()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.set_factor(1.0)
            self._pipeline.progress(self._batches)

    def save(self, how: str) -> None:
        """As the training loop does."""
        self._saved += 1
        pieces = state_shards(self.model, self.optimizer, self._ranks) + random_state_shards(self._ranks)
        check_state(pieces, self._saved, self._ranks)
        self._savers[how].save(pieces, Position(self._saved, 0, self._saved, None, ranks=self._ranks.world))

    def written(self) -> None:
        for saver in self._savers.values():
            saver.finish()

    def block(self, how: str, steps: int) -> Block:
        dist.barrier(group=self._ranks.control)
        wall, cpu, stall = time.perf_counter(), time.process_time(), 0.0
        if how != NONE:
            self.save(how)
            stall = time.perf_counter() - wall
        self.steps(steps)
        waited = time.perf_counter()
        self.written()
        now = time.perf_counter()
        return Block(now - wall, time.process_time() - cpu, stall + now - waited)


def recipe_of(folder: Path, shape: Shape, width: int) -> Recipe:
    """Default recipe; the loader's work is done before anything is timed."""
    data = {"path": str(folder / "data"), "catalog": str(folder / "catalog"), "workers": 0}
    model = {**shape.model, "embedding_dim": width}
    return parse({"name": "checkpoint-cost", "data": data, "model": model}, "checkpoint_cost")


def enough_steps(training: Training, least: int, ranks: Ranks) -> int:
    """So many that a write that begins with the first of them has ended before the last; the same on all ranks."""
    training.steps(WARM_UP)
    training.save(BACKGROUND)
    training.written()
    start = time.perf_counter()
    training.steps(WARM_UP)
    step = (time.perf_counter() - start) / WARM_UP
    start = time.perf_counter()
    training.save(BACKGROUND)
    training.written()
    return largest(ranks, max(least, int(3 * (time.perf_counter() - start) / step)))


def rounds_of(training: Training, steps: int, rounds: int, ranks: Ranks) -> dict[str, list[Block]]:
    names = [NONE, BACKGROUND, WAITED]
    blocks: dict[str, list[Block]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            blocks[name].append(training.block(name, steps))
            if ranks.first:
                print(f"round {turn + 1}/{rounds}  {name}: {blocks[name][-1].wall:.2f} s", file=sys.stderr, flush=True)
    return blocks


def spread(values: list[float], digits: int = 3) -> list[float]:
    """Median, lowest, highest."""
    return [round(value, digits) for value in (statistics.median(values), min(values), max(values))]


def summary(blocks: dict[str, list[Block]], steps: int) -> dict[str, Any]:
    """Costs are differences, and ratios quotients, to the block without a checkpoint of the same round."""
    plain = blocks[NONE]
    found: dict[str, Any] = {"step_ms": spread([1000 * block.wall / steps for block in plain], 1)}
    for name in (BACKGROUND, WAITED):
        pairs = list(zip(blocks[name], plain, strict=True))
        found[name] = {
            "wall_seconds": spread([block.wall - base.wall for block, base in pairs]),
            "cpu_seconds": spread([block.cpu - base.cpu for block, base in pairs]),
            "stall_seconds": spread([block.stall for block, _ in pairs]),
            "cpu_ratio": spread([block.cpu / base.cpu for block, base in pairs]),
            "wall_ratio": spread([block.wall / base.wall for block, base in pairs]),
            "steps_lost": spread([(block.wall - base.wall) / (base.wall / steps) for block, base in pairs], 1),
        }
    return found


def measure(size: str, rounds: int, least: int, folder: Path, ranks: Ranks) -> dict[str, Any]:
    shape, width = SIZES[size]
    run_on_all_ranks(ranks, lambda: write_data(folder, shape) if ranks.first else None)
    recipe = recipe_of(folder, shape, width)
    data = open_dataset(recipe, ranks)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    training = Training(recipe, data, checkpoints, ranks)
    steps = enough_steps(training, least, ranks)
    blocks = rounds_of(training, steps, rounds, ranks)
    pieces = state_shards(training.model, training.optimizer, ranks)
    own = sum(piece.values.numel() * piece.values.element_size() for piece in pieces if piece.owned)
    return {
        "bytes": total(ranks, own),
        "steps": steps,
        **summary(blocks, steps),
        "resume_seconds": {k: round(v, 3) for k, v in resume_phases(recipe, data, checkpoints, ranks).items()},
        "blocks": {name: [asdict(block) for block in found] for name, found in blocks.items()},
    }


def lines_of(name: str, found: dict[str, Any]) -> list[str]:
    lines = []
    for how in (BACKGROUND, WAITED):
        cost = found[how]
        cells = [
            f"{cost[key][0]:.{digits}f} [{cost[key][1]:.{digits}f}, {cost[key][2]:.{digits}f}]"
            for key, digits in (("wall_seconds", 2), ("cpu_seconds", 2), ("stall_seconds", 2), ("steps_lost", 1))
        ]
        size = f"{found['bytes'] / 1e6:,.0f} MB"
        lines.append(f"| {name} | {size} | {found['step_ms'][0]:.0f} | {how} | {' | '.join(cells)} |")
    return lines


HEAD = """| model | checkpoint | ms a step | written | wall-clock s | CPU s of a rank | s without a step | in steps |
|---|---|---|---|---|---|---|---|"""


def conditions(rounds: int, ranks: Ranks) -> dict[str, object]:
    stack = find_stack()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip(),
        "stack": str(stack),
        "cores": cores(),
        "load_average": os.getloadavg()[0],
        "ranks": ranks.world,
        "threads_per_rank": ranks.threads,
        "batch": SHAPES["beauty"].batch,
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where data and checkpoints are written; default: TMPDIR")
    parser.add_argument("--write", action="store_true")
    flags = parser.parse_args()
    with joined_ranks() as ranks:
        for size in flags.shape:
            with tempfile.TemporaryDirectory(dir=flags.folder) as temporary:
                shared = [temporary]
                dist.broadcast_object_list(shared, src=0, group=ranks.control)
                found = measure(size, flags.rounds, flags.steps, Path(shared[0]), ranks)
                dist.barrier(group=ranks.control)
            if ranks.first:
                name = f"{size}, {ranks.world} rank(s)"
                print("\n".join((HEAD, *lines_of(name, found))))
                print("resume:", ", ".join(f"{k} {v:.2f} s" for k, v in found["resume_seconds"].items()), flush=True)
                if flags.write:
                    before = json.loads(FILE.read_text()) if FILE.exists() else {}
                    before[name] = {**conditions(flags.rounds, ranks), **found}
                    FILE.write_text(json.dumps(before, indent=1) + "\n")


# Time to resume, phase by phase; the files are in the machine's page cache.


def resume_phases(recipe: Recipe, data: Dataset, folder: Path, ranks: Ranks) -> dict[str, float]:
    """Phase -> seconds of a resumed run before its first step, except opening its data."""
    seconds: dict[str, float] = {}
    code = "import time; s = time.perf_counter(); import sidrec.train.run; print(time.perf_counter() - s)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    seconds["import"] = float(found.stdout)

    def timed(name: str, start: float) -> None:
        dist.barrier(group=ranks.control)
        seconds[name] = time.perf_counter() - start

    dist.barrier(group=ranks.control)
    start = time.perf_counter()
    saved = newest_sound(folder, ranks, set_aside=True)
    timed("checksums", start)
    assert saved is not None, "the rounds have saved"
    start = time.perf_counter()
    model = build_training(recipe, data, ranks).model
    optimizer = build_optimizer(model, recipe.optimizer, recipe.model.embedding_dim)
    timed("plan and tables", start)
    start = time.perf_counter()
    load_model(saved, model, optimizer, ranks)
    restore_random_state(saved, 1, recipe.seed, ranks)
    timed("read", start)
    return seconds


if __name__ == "__main__":
    main()
