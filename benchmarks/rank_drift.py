"""How far one recipe drifts apart on one and on two ranks, which only add in another order.

    python -m benchmarks.rank_drift RECIPE --folder build/drift --every 20 -- --optimizer.tables.lr 0.1

Trains RECIPE, with the flags after `--`, once in a single process and once on two ranks of torchrun. Prints the
difference of the losses by step and, for the tables of each checkpoint, the mean and the largest difference of an
element, and the rows that moved apart by more than a hundredth of the learning rate of a first update.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sidrec.checkpoint.checkpoint_store import checkpoint_path
from sidrec.checkpoint.stored_tables import open_checkpoint
from sidrec.text import text_table

APART = 1e-3  # of an element


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("build/drift"), help="for the two runs")
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints that are compared")
    parser.add_argument("flags", nargs="*", help="flags of the recipe, after --")
    given = parser.parse_args(argv)
    runs = [_train(given.recipe, ranks, given.folder / f"ranks-{ranks}", given.every, given.flags) for ranks in (1, 2)]
    losses = [_losses(run) for run in runs]
    steps = sorted(set(losses[0]) & set(losses[1]))
    shown = [step for step in steps if step in (1, 2, 5) or step % given.every == 0]
    differences = {step: abs(losses[0][step] - losses[1][step]) for step in steps}
    print(
        text_table([("step", "difference of the loss"), *((str(step), f"{differences[step]:.1e}") for step in shown)])
    )
    print(f"largest difference {max(differences.values()):.1e} in {len(steps)} steps\n")
    print(text_table([("step", "table", "mean", "largest", "rows apart"), *_tables(runs, given.every)], left=2))
    return 0


def _train(recipe: Path, ranks: int, folder: Path, every: int, flags: Sequence[str]) -> Path:
    """The run directory. Raises CalledProcessError if the training fails."""
    own = ["--train.runs", str(folder), "--train.log-every", "1"]
    own += ["--checkpoint.every", str(every), "--checkpoint.keep", "1000"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "sidrec.train", str(recipe), *own, *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return next(folder.glob("*/seed*"))


def _losses(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def _tables(runs: Sequence[Path], every: int) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for path in sorted((runs[0] / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:])):
        step = int(path.name[5:])
        if step % every or not checkpoint_path(runs[1] / "checkpoints", step).is_dir():
            continue
        one, two = (open_checkpoint(run / "checkpoints" / path.name).tables for run in runs)
        for name, table in one.items():
            rows_of = [
                np.concatenate([part.float().numpy() for _, part in of.weight.parts()]) for of in (table, two[name])
            ]
            apart_ND = np.abs(rows_of[0] - rows_of[1])
            rows = int((apart_ND > APART).any(axis=1).sum())
            lines.append((str(step), name, f"{apart_ND.mean():.1e}", f"{apart_ND.max():.1e}", f"{rows:,}"))
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
