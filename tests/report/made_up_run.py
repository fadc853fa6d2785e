"""Run directories as a training leaves them, made without a training: parts can be left out."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sidrec.config import save
from sidrec.io.files import write_json
from sidrec.metrics.exact import measure_slices, save_metrics
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.slices import load_item_slices
from sidrec.train.gate_report import gate_by_decile
from sidrec.train.run_directory import RunDirectory
from sidrec.train.tracking import BINS, Evaluation
from tests.small_log import ITEMS_COUNT, USERS, small_recipe

ROWS = 300
NEVER = {"gate": 0.1, "lowest_tenth": 0.05, "highest_tenth": 0.2, "rows": 12}


def predictions(skill: float, *, seed: int = 0, rows: int = ROWS) -> Predictions:
    """The same rows for every skill."""
    random = np.random.default_rng(seed)
    label = (random.random(rows) < 0.4).astype(np.float32)
    user, item = random.integers(1, USERS + 1, rows), random.integers(1, ITEMS_COUNT + 1, rows)
    noise = np.random.default_rng(seed + 1).normal(size=rows)
    score = (skill * (label - 0.4) + noise - 0.4).astype(np.float32)
    return Predictions("test", np.arange(rows), user, item, label, score)


def made_up_run(
    folder: Path,
    name: str,
    skill: float = 1.0,
    *,
    kind: str = "sid_coord",
    evaluated: bool = True,
    saved: bool = True,
    skipped: tuple[int, ...] = (),
    scored: Predictions | None = None,
    **sections: Any,
) -> Path:
    """A run on the small log in `folder`. Returns the run directory."""
    recipe = small_recipe(folder, name=name, model={"embedding_dim": 8, "item": {"kind": kind}}, **sections)
    run = RunDirectory(recipe.run)
    run.path.mkdir(parents=True)
    save(recipe, run.config)
    write_json(run.facts, {"torch": "2", "torchrec": "1", "ranks": 2, "parameters": {"item_rows": 61}})
    lines = [
        {"step": step, "epoch": 0, "loss": 0.7 - step / 100, "bce": 0.6, "lr_factor": 1.0, "samples_per_second": 640.0}
        for step in range(1, 13)
    ]
    for step in skipped:
        lines[step - 1].pop("loss")
    run.log.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 13, "ep', encoding="utf-8")
    left_out = [{"step": step, "what": "a loss that is nan", "rows": {}} for step in skipped]
    if skipped:
        run.skipped.write_text("".join(f"{json.dumps(line)}\n" for line in left_out), encoding="utf-8")
    if not evaluated:
        return run.path
    found = predictions(skill) if scored is None else scored
    slices = load_item_slices(recipe.data.path / "items.parquet", 0.1, 0.5)
    measured = measure_slices(found, slices)
    save_metrics({"test": {key: {**values, "step": 12} for key, values in measured.items()}}, run.metrics)
    if saved:
        found.save(run.predictions("test"))
    if kind == "sid_coord":
        _gate_and_attention(run, measured)
    return run.path


def _gate_and_attention(run: RunDirectory, measured: Any) -> None:
    exposures = np.arange(ROWS, dtype=np.float32)
    gate = (exposures / ROWS).astype(np.float32)
    if run.predictions("test").exists():
        write_json(
            run.path / "gate_test.json",
            {"spearman_of_deciles": 1.0, **gate_by_decile(exposures, gate), "never_shown": NEVER},
        )
    attention = {
        "weights": {"s1": 0.75, "s2": 0.25},
        "entropy_nats": 0.56,
        "largest_entropy_nats": 0.69,
        "collapsed": False,
        "histogram": {"s1": [0] * 15 + [7] + [0] * (BINS - 16), "s2": [0] * 5 + [7] + [0] * (BINS - 6)},
    }
    write_json(run.attention("test"), attention)
    evaluations = [Evaluation("test", step, measured, gate, exposures, attention).line() for step in (6, 12)]
    run.evaluations.write_text("".join(f"{line}\n" for line in evaluations), encoding="utf-8")
    run.warnings.write_text("split test: <b>the gate</b> is saturated\n", encoding="utf-8")
