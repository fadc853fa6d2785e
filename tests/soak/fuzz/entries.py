"""What the product does with each kind of file: the same functions that its commands call, in this process.

Each takes a folder with the files of its kind, and raises what it raises.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from data_prep.amazon import AmazonCommand
from data_prep.build import LogSettings
from data_prep.criteo import CriteoCommand
from data_prep.criteo_log import CriteoLogCommand
from data_prep.interactions import Columns, InteractionsCommand
from data_prep.movielens import MovieLensCommand
from sidrec.cli.plans import bench as bench_command
from sidrec.config import Recipe, load, load_file, save
from sidrec.config.load import parse
from sidrec.config.recipe import AdagradTables
from sidrec.data.criteo import CriteoBatches, criteo_paths
from sidrec.data.dataset import read_dataset
from sidrec.data.loader import open_split
from sidrec.metrics.exact import load_metrics, metrics_table
from sidrec.metrics.predictions import load_predictions
from sidrec.metrics.slices import load_item_slices
from sidrec.parallel.sharding import EveryTypeSharder, fused_params
from sidrec.plans.calibration import load_calibration
from sidrec.plans.plan_file import read_plan, sharding_plan_of
from sidrec.plans.tables_file import is_tables, read_tables
from sidrec.schema import ITEMS
from sidrec.sid.catalog import load_catalog
from sidrec.sid.item_vectors import read_item_vectors
from sidrec.sid.learners.registry import load_tokenizer
from sidrec.sid.tokenizer import LearnerInputs

OUT, RAW, DATA, CATALOG, NPY = "out", "raw", "data", "catalog", "npy"
LOG_CSV, ITEMS_CSV, LOG_PARQUET, CRITEO_TEXT = "log.csv", "items.csv", "log.parquet", "train.txt"
RECIPE, TABLES, PLAN, CALIBRATION, BENCH = "recipe.yaml", "tables.yaml", "plan.json", "calibration.json", "bench.json"
SCORES, METRICS, TOKENIZERS = "predictions.parquet", "metrics.json", ("arrays", "network")
SETTINGS = LogSettings(history=4, test_share=0.2)


def interactions(folder: Path) -> None:
    columns = Columns(
        rating_column="rating", items_file=folder / ITEMS_CSV, text_columns=("title",), item_cat_columns=("kind",)
    )
    InteractionsCommand(folder / LOG_CSV, folder / OUT, columns, SETTINGS, vectors="none").run()


def interactions_parquet(folder: Path) -> None:
    InteractionsCommand(folder / LOG_PARQUET, folder / OUT, Columns(rating_column="rating"), SETTINGS).run()


def movielens(folder: Path) -> None:
    MovieLensCommand(folder / RAW, folder / OUT, SETTINGS, vectors="none").run()


def amazon(folder: Path) -> None:
    AmazonCommand(folder / RAW, folder / OUT, SETTINGS, vectors="none").run()


def criteo(folder: Path) -> None:
    CriteoCommand((folder / CRITEO_TEXT, folder / OUT)).run()


def criteo_npy(folder: Path) -> None:
    """Batches for TorchRec's own loops, and a log for ours."""
    paths = criteo_paths(folder / NPY)
    for _ in CriteoBatches("train", *paths, 16, 0, 1, table_rows=[1000] * 26, look="full"):
        pass
    CriteoLogCommand(folder / NPY, folder / OUT, item="C10", width=2).run()


def recipe_of(folder: Path) -> Recipe:
    """For the log and catalog of the folder."""
    sections = {
        "data": {"path": str(folder / DATA), "catalog": str(folder / CATALOG), "lanes": 2, "workers": 0},
        "model": {"embedding_dim": 8, "context": ["user_id", "cat_kind"]},
    }
    return parse({"name": "fuzz", **sections}, "fuzz")


def log(folder: Path) -> None:
    """All that training reads before its first step, and then every row."""
    recipe = recipe_of(folder)
    found = read_dataset(recipe)
    load_item_slices(folder / DATA / ITEMS, 0.1, 0.5)
    for split in ("train", "test"):
        batches = open_split(
            recipe.data,
            recipe.model,
            split,
            rank=0,
            world=1,
            seed=0,
            shuffle=True,
            tables=found.tables,
            manifest=found.manifest,
        )
        for _ in batches.batches(0):
            pass


def items(folder: Path) -> None:
    inputs = LearnerInputs(pairs=True, behavior=True)
    read_item_vectors(folder / DATA / ITEMS, ("text",), normalize=True, inputs=inputs)
    load_item_slices(folder / DATA / ITEMS, 0.1, 0.5)


def catalog(folder: Path) -> None:
    found = load_catalog(folder / CATALOG)
    found.codes_by_id(50)


def tokenizers(folder: Path) -> None:
    for name in TOKENIZERS:
        tokenizer, _ = load_tokenizer(folder / name)
        tokenizer.encode(np.ones((3, tokenizer.width), np.float32))


def recipe(folder: Path) -> None:
    """Every checkpoint has a copy of the recipe, so an accepted recipe must read back equal."""
    found = load([str(folder / RECIPE)])
    again = folder / OUT
    save(found, again)
    assert load_file(again) == found, "a saved recipe reads as another one"


def tables(folder: Path) -> None:
    subject = str(folder / TABLES)
    if is_tables(subject):
        found = read_tables(subject)
        found.collection()
        found.loads(64)


class Tables(nn.Module):
    """The model that the sound plan is for."""

    def __init__(self) -> None:
        super().__init__()
        rows = {"item": 100, "user": 50, "place": 10}
        self.tables = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(name=name, num_embeddings=count, embedding_dim=16, feature_names=[f"f_{name}"])
                for name, count in rows.items()
            ],
        )


def plan(folder: Path) -> None:
    sharders = [EveryTypeSharder(fused_params=fused_params(AdagradTables()))]
    sharding_plan_of(read_plan(folder / PLAN), Tables(), 2, 2, "cpu", sharders, str(folder / PLAN))


def calibration(folder: Path) -> None:
    load_calibration(folder / CALIBRATION, "cpu").costs_for(3).costs()


def bench_page(folder: Path) -> None:
    bench_command(["page", str(folder / BENCH), str(folder / OUT)])


def bench_calibrate(folder: Path) -> None:
    bench_command(["calibrate", str(folder / BENCH), "--out", str(folder / OUT)])


def predictions(folder: Path) -> None:
    load_predictions(folder / SCORES, "test")
    metrics_table(load_metrics(folder / METRICS))
