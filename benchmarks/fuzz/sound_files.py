"""Sound files of every kind that is no log: recipes, catalogs, plans, benches, checkpoints."""

import json
from pathlib import Path

import numpy as np

from benchmarks.fuzz import entries
from benchmarks.fuzz.sound_logs import THINGS, WIDTH, data
from benchmarks.recorded_benches import recorded
from sidrec.config import save
from sidrec.config.learners import Learner, ResidualKMeansConfig, RqVaeConfig, TokenizerConfig, Training
from sidrec.metrics.exact import QUALITY
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.slices import SLICES
from sidrec.plans.cost import KINDS, VERSION, Calibration, UnitCosts, save_calibration
from sidrec.plans.plan_file import PlanFile, TableLayout, write_plan
from sidrec.sid.catalog import Catalog
from sidrec.sid.learners.registry import fit_tokenizer, save_tokenizer
from sidrec.sid.tokenizer import SideInformation

BENCH = "amazon_beauty-2"
CODEBOOK = 4


def catalog(folder: Path) -> None:
    codes_NL = np.random.default_rng(3).integers(0, CODEBOOK, (THINGS, 3))
    weights_NL = np.full((THINGS, 3), 0.5, np.float32)
    Catalog(np.arange(1, THINGS + 1), codes_NL, (CODEBOOK,) * 3, weights_NL).save(folder / entries.CATALOG)


def log_and_catalog(folder: Path) -> None:
    data(folder)
    catalog(folder)


def tokenizers(folder: Path) -> None:
    """One that is arrays alone, and a network."""
    vectors_NV = np.random.default_rng(4).normal(size=(THINGS, WIDTH)).astype(np.float32)
    training = Training(epochs=1, batch_size=THINGS)
    network = RqVaeConfig(levels=2, codebook_size=CODEBOOK, width=4, hidden=(6,), training=training)
    learners: tuple[Learner, ...] = (ResidualKMeansConfig(levels=2, codebook_size=CODEBOOK), network)
    for name, learner in zip(entries.TOKENIZERS, learners, strict=True):
        config = TokenizerConfig(learner=learner)
        save_tokenizer(fit_tokenizer(vectors_NV, config, SideInformation()), config, folder / name)


def recipe(folder: Path) -> None:
    save(entries.recipe_of(folder), folder / entries.RECIPE)
    text = (folder / entries.RECIPE).read_text()
    (folder / entries.RECIPE).write_text(text.replace(str(folder), "."))


def tables(folder: Path) -> None:
    lines = ["name: three", "rows_per_step: 64", "tables:", "- {name: item, rows: 1000, width: 16, features: 2}"]
    lines += ["- {name: user, rows: 500, width: 8, ids_per_bag: 3.5}", "- {name: place, rows: 10, width: 4, zipf: 0}"]
    (folder / entries.TABLES).write_text("\n".join(lines) + "\n")


def plan(folder: Path) -> None:
    layouts = {
        "item": TableLayout(rows=100, width=16, sharding_type="row_wise", compute_kernel="fused", ranks=(0, 1)),
        "user": TableLayout(rows=50, width=16, sharding_type="column_wise", compute_kernel="fused", ranks=(0, 1)),
        "place": TableLayout(rows=10, width=16, sharding_type="table_wise", compute_kernel="fused", ranks=(1,)),
    }
    write_plan(folder / entries.PLAN, PlanFile(world=2, local_world=2, device="cpu", tables={"tables": layouts}))


def calibration(folder: Path) -> None:
    fits = {world: UnitCosts(dict.fromkeys(KINDS, 0.5), 8, ["a", "b"], 0.1) for world in (2, 4)}
    save_calibration(folder / entries.CALIBRATION, Calibration(VERSION, "cpu", fits, {"commit": "x"}))


def bench(folder: Path) -> None:
    """Three plans of a recorded one."""
    result = recorded(BENCH)
    result["plans"] = result["plans"][:3]
    (folder / entries.BENCH).write_text(json.dumps(result, indent=1))


def predictions(folder: Path) -> None:
    rows = np.arange(40)
    scores = np.linspace(-1, 1, 40, dtype=np.float32)
    Predictions("test", rows, rows % 5, rows % 7, (rows % 2).astype(np.float32), scores).save(folder / entries.SCORES)
    slices = {name: {"rows": 3, **dict.fromkeys(QUALITY, 0.5)} for name in SLICES}
    (folder / entries.METRICS).write_text(json.dumps({"test": slices}))
