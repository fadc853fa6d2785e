"""A trainer for tests of studies: reads a recipe, writes a run directory as sidrec.train does, at once.

Its ranker is as good as the recipe's learning rate; a recipe with `optimizer.schedule.warmup_steps: 13` fails.
Arguments: recipe, ranks, and `predictions` to write those too or `hang` to hang, with its pid in the run directory.
"""

import json
import os
import sys
import time
from pathlib import Path

import yaml

ROWS, USERS, ITEMS = 400, 40, 20


def _write_predictions(path: Path, skill: float, seed: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.random.default_rng(7)  # the same rows in every run
    label = (rows.random(ROWS) < 0.4).astype(np.float32)
    user, item = rows.integers(1, USERS + 1, ROWS), rows.integers(1, ITEMS + 1, ROWS)
    score = (skill * label + np.random.default_rng(seed).normal(size=ROWS)).astype(np.float32)
    columns = {"row": range(ROWS), "user_id": user, "item_id": item, "label": label, "score": score}
    pq.write_table(pa.table(columns), path)


def main(recipe_path: str, ranks: str, *wanted: str) -> None:
    recipe = yaml.safe_load(Path(recipe_path).read_text())
    run = Path(recipe["train"]["runs"]) / recipe["name"] / f"seed{recipe['seed']}"
    run.mkdir(parents=True, exist_ok=True)
    with (run.parents[2] / "calls").open("a") as calls:
        resumed = " resumed" if (run / "config.yaml").exists() else ""
        calls.write(f"{run.parent.parent.name}/{run.parent.name}/{run.name}{resumed}\n")
    (run / "config.yaml").touch()
    (run / "checkpoints").mkdir(exist_ok=True)
    if recipe.get("optimizer", {}).get("schedule", {}).get("warmup_steps") == 13:
        sys.exit("unlucky warm-up")

    if "hang" in wanted:
        (run / "pid").write_text(str(os.getpid()))
        time.sleep(600)

    skill = recipe.get("optimizer", {}).get("tables", {}).get("lr", 0.5)
    split = recipe["evaluate"]["splits"][0]
    if "predictions" in wanted:
        _write_predictions(run / f"predictions_{split}.parquet", skill, recipe["seed"])
    counts = {"rows": ROWS, "users": USERS, "covered_users": USERS, "covered_rows": ROWS}
    quality = {"auc": 0.5 + skill / 10 + recipe["seed"] / 100, "gauc": 0.5 + skill / 20, "uauc": 0.5}
    metrics = {split: {items: {**quality, **counts} for items in ("all", "tail", "cold")}}
    (run / "run.json").write_text(json.dumps({"ranks": int(ranks)}))
    (run / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(*sys.argv[1:])
