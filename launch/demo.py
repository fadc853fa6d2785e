"""`make demo`: the whole way on a synthetic world whose best AUC is known. Every step is a command you can type.

Data, semantic ids, SID-Coord and its HID-only twin on two ranks through torchx, one table.
"""

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from sidrec.config import load_file
from sidrec.io.output_folders import check_replaceable
from sidrec.metrics.exact import comparison_table, load_metrics
from sidrec.schema import LOG, ContractError, load_manifest
from sidrec.train.run_directory import RUN

RECIPES = {
    "SID-Coord": Path("launch/recipes/demo.yaml"),
    "HID only": Path("launch/recipes/demo_hid.yaml"),
}
SPLIT = "test"
RANKS = 2


def main() -> int:
    """Runs the demo in the current folder, the root of a checkout. Returns 1 if a step failed."""
    first = RECIPES["SID-Coord"]
    recipe = load_file(first)
    for path in RECIPES.values():
        run = load_file(path).run
        try:
            check_replaceable(run.resolve(), RUN)
        except ContractError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        shutil.rmtree(run, ignore_errors=True)
    steps = [
        f"python -m data_prep.synthetic {recipe.data.path} --overwrite",
        f"sidrec fit {first} --overwrite",
        *(
            f"torchx run -s local_cwd launch/components.py:train --recipe {path} --ranks {RANKS}"
            for path in RECIPES.values()
        ),
    ]
    for step in steps:
        if not _run(step):
            return 1
    _summary(recipe.data.path)
    return 0


def _run(command: str) -> bool:
    """Runs a command with the programs of this very environment, whether or not it is activated."""
    print(f"\n$ {command}", flush=True)
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
    print(
        f"\nSynthetic world, split {SPLIT}, {RANKS} gloo ranks, seed 0. No model can do better than AUC {best:.4f}.\n"
    )
    print(comparison_table(metrics, SPLIT))
    print()
    for name, run in runs.items():
        reached = (metrics[name][SPLIT]["all"]["auc"] or 0.5) - 0.5
        print(f"{name}: {reached / (best - 0.5):.1%} of the best possible AUC above chance; run directory {run}")
    catalog = load_file(RECIPES["SID-Coord"]).data.catalog
    print(f"pictures: {runs['SID-Coord'] / f'gate_{SPLIT}.png'}, {catalog / 'pictures'}")


if __name__ == "__main__":
    sys.exit(main())
