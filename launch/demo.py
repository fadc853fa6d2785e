"""`make demo`: every step from data to metrics, on a synthetic world whose best possible AUC is known.

Each step is a command that the demo prints: make the data, fit semantic IDs, train SID-Coord and a model with hashed
IDs alone on two ranks through torchx. A table then compares both with the best possible AUC.
"""

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from sidrec import command_line
from sidrec.config import load_file
from sidrec.io.output_folders import check_replaceable
from sidrec.io.places import local_path
from sidrec.metrics.exact import comparison_table, load_metrics
from sidrec.schema import LOG, load_manifest
from sidrec.train.run_directory import RUN

RECIPES = {
    "SID-Coord": Path("launch/recipes/demo.yaml"),
    "HID only": Path("launch/recipes/demo_hid.yaml"),
}
SPLIT = "test"
RANKS = 2


def main() -> int:
    """Runs the demo in the current folder, the root of a checkout. Returns 1 if a step failed.

    Raises ContractError where a run directory holds files that no run wrote.
    """
    recipe = load_file(RECIPES["SID-Coord"])
    for path in RECIPES.values():
        run = load_file(path).run
        check_replaceable(run.resolve(), RUN)
        shutil.rmtree(run, ignore_errors=True)
    steps = {
        "A synthetic world whose best possible AUC is known": (f"sidrec prep synthetic {recipe.data.path} --overwrite"),
        "A semantic ID for every item, from its content vector": f"sidrec fit {RECIPES['SID-Coord']} --overwrite",
    }
    for name, path in RECIPES.items():
        title = f"Training: {name}, {RANKS} ranks"
        steps[title] = f"torchx run -s local_cwd launch/components.py:train --recipe {path} --ranks {RANKS}"
    for number, (title, command) in enumerate(steps.items(), 1):
        print(f"\nStep {number} of {len(steps)}. {title}")
        if not _run(command):
            return 1
    _summary(local_path(recipe.data.path, "data.path"))
    return 0


def _run(command: str) -> bool:
    """Runs a command with the programs of this Python's environment, activated or not."""
    print(f"$ {command}", flush=True)
    program, *arguments = shlex.split(command)
    started = time.monotonic()
    status = subprocess.run([str(Path(sys.executable).with_name(program)), *arguments], check=False).returncode
    outcome = "" if status == 0 else f", exit status {status}"
    print(f"  {time.monotonic() - started:.0f} s{outcome}", flush=True)
    return status == 0


def _summary(data: Path) -> None:
    runs = {name: load_file(path).run for name, path in RECIPES.items()}
    metrics = {name: load_metrics(run / "metrics.json") for name, run in runs.items()}
    bayes = load_manifest(data / LOG).protocol["bayes"]
    assert isinstance(bayes, dict), "the synthetic world states the best possible AUC per slice"
    best = bayes["all"]["auc"]
    print(f"\nResult: split {SPLIT} of {data}, {RANKS} gloo ranks, seed 0. The best possible AUC is {best:.4f}.\n")
    print(comparison_table(metrics, SPLIT))
    print()
    for name, run in runs.items():
        reached = (metrics[name][SPLIT]["all"]["auc"] or 0.5) - 0.5
        print(f"{name}: {reached / (best - 0.5):.1%} of the best possible AUC above chance; run directory {run}")
    catalog = load_file(RECIPES["SID-Coord"]).data.catalog
    print(f"Pictures: {runs['SID-Coord'] / f'gate_{SPLIT}.png'}, {catalog / 'pictures'}")


if __name__ == "__main__":
    sys.exit(command_line.run(main))
