"""Makes the files that a release leaves to the next one: data, catalogs, runs with checkpoints, plans, measurements.

The committed ones were made by 0.1.0 and are never made again: later releases must read them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import yaml

from sidrec.bench.regression import calibrate_costs, samples
from sidrec.bench.result import load_bench
from sidrec.plans.calibration import VERSION, Calibration, save_calibration
from tests.golden import product
from tests.golden.losses import run
from tests.golden.raw import write_raw
from tests.golden.recipes import CASES, LEARNERS, merged, write_recipe

ARTIFACTS = Path(__file__).parent / "v0.1.0" / "artifacts"
WORLD = "--rows 1300 --users 40 --items 60 --branching 4 --width 12 --history 6 --days 40 --int-noise 1 --cat-noise 1"
BEHAVIOR = "--width 8 --epochs 4 --blocks 1 --heads 1 --length 10"
ONE = merged(CASES["base"], {"name": "one", "model": CASES["artifacts"], "checkpoint": {"every": 12}})
TWO = merged(
    ONE, {"name": "two", "parallel": {"plan": "plan.json"}, "optimizer": {"tables": {"kind": "rowwise_adagrad"}}}
)
LAID = {
    "hid": {"sharding_type": "row_wise", "compute_kernel": "fused", "ranks": [0, 1]},
    "s1": {"sharding_type": "data_parallel", "compute_kernel": "dense", "ranks": [0, 1]},
    "s2": {"sharding_type": "table_wise", "compute_kernel": "fused", "ranks": [1]},
}
"""Laid by hand over what the search found, so that the plan file holds several sharding types."""
TABLES = {
    "name": "tables",
    "rows_per_step": 64,
    "tables": [
        {"name": "big", "rows": 900, "width": 8, "ids_per_bag": 2, "zipf": 1.05},
        {"name": "small", "rows": 90, "width": 8, "features": 2},
    ],
}
BENCH = "--plans auto,table_wise,row_wise,data_parallel --rounds 3 --steps 3 --warm-up 2 --out bench"


def make_artifacts(folder: Path) -> None:
    """Writes them into `folder`, which must not exist."""
    folder.mkdir(parents=True)
    with product.inside(folder):
        _data_and_catalogs(folder)
        _plan(folder)
        run(product.command(["train", write_recipe(ONE, folder)]))
        commands = [["train", write_recipe(TWO, folder)], ["bench", "plans", "tables.yaml", *BENCH.split()]]
        product.on_ranks(2, folder, commands)
        Path("bench/bench.json").rename("bench.json")
        _calibration()
        np.save("start.npy", (np.arange(61 * 8, dtype=np.float32).reshape(61, 8) % 11 - 5) / 100)
        shutil.rmtree("runs/two/seed0/checkpoints/step-22")  # small: what follows step 12 is in metrics.jsonl
        _remove_pictures(folder)


def _calibration() -> None:
    """What 0.1.0's command wrote. Four plans do not determine costs, and later versions refuse them."""
    result = load_bench(Path("bench.json"))
    costs = {2: calibrate_costs(samples(result, "bench.json"))}
    save_calibration(Path("calibration.json"), Calibration(VERSION, "cpu", costs))


def copy(to: Path) -> Path:
    """A copy of the committed artifacts to work in."""
    shutil.copytree(ARTIFACTS, to)
    return to


def _data_and_catalogs(folder: Path) -> None:
    run(product.prepare("synthetic", ["data", *WORLD.split()]))
    run(product.prepare("behavior", ["data", *BEHAVIOR.split()]))
    write_raw(folder / "raw")
    run(product.prepare("item_vectors", ["data", "--from", "raw/vectors.npy", "--column", "visual"]))
    shutil.rmtree("raw")
    run(product.command(["fit", write_recipe(ONE, folder)]))
    weighted = merged(ONE, {"name": "weighted", "data": {"catalog": "weighted"}, "tokenizer": LEARNERS["adc_sid"]})
    run(product.command(["fit", write_recipe(weighted, folder)]))


def _plan(folder: Path) -> None:
    Path("tables.yaml").write_text(yaml.safe_dump(TABLES, sort_keys=False))
    run(product.command(["plan", "one.yaml", "--world", "2", "--export", "plan.json"]))
    plan = json.loads(Path("plan.json").read_text())
    for name, layout in LAID.items():
        plan["tables"]["items"][name] |= layout
    Path("plan.json").write_text(json.dumps(plan, indent=1) + "\n")


def _remove_pictures(folder: Path) -> None:
    for path in [*folder.rglob("*.png"), *folder.rglob("events.out*"), *folder.rglob("bench.html")]:
        path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
