"""A world whose best AUC is known: SID-Coord nearly reaches it, and does not when SIDs are dealt to the wrong items."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidrec.config import Recipe, load_file
from sidrec.fit import fit_catalog
from sidrec.metrics.exact import load_metrics
from sidrec.parallel.process_group import joined_ranks
from sidrec.schema import LOG, load_manifest
from sidrec.sid.catalog import Catalog, load_catalog
from sidrec.train.run import train
from tests.ranks import joined, run_on_ranks

ROOT = Path(__file__).parents[2]


def auc_after_training(rank: int, world: int, recipe: Recipe) -> float:
    train(recipe, joined(rank, world))
    auc = load_metrics(recipe.run / "metrics.json")["test"]["all"]["auc"]
    assert auc is not None
    return float(auc)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The demo's recipe on the demo's world, with SIDs learned from the items' vectors."""
    folder = tmp_path_factory.mktemp("world")
    command = [sys.executable, "-m", "data_prep.synthetic", str(folder / "data")]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    recipe = load_file(ROOT / "launch" / "recipes" / "demo.yaml")
    data = replace(recipe.data, path=folder / "data", catalog=folder / "catalog")
    recipe = replace(recipe, data=data, train=replace(recipe.train, runs=folder / "runs"))
    with joined_ranks() as ranks:
        fit_catalog(recipe, ranks)
    return recipe


def share_of_best(recipe: Recipe) -> float:
    """AUC above chance, relative to the best that any model can reach."""
    bayes = load_manifest(recipe.data.path / LOG).protocol["bayes"]
    assert isinstance(bayes, dict)
    return (run_on_ranks(1, auc_after_training, recipe)[0] - 0.5) / (bayes["all"]["auc"] - 0.5)


def test_sid_coord_reaches_the_best_auc_but_for_a_twentieth(world: Recipe) -> None:
    assert share_of_best(world) > 0.95


def test_shuffled_sids_do_not(world: Recipe, tmp_path: Path) -> None:
    catalog = load_catalog(world.data.catalog)
    order = np.random.default_rng(0).permutation(len(catalog))
    Catalog(catalog.item_ids_N, catalog.codes_NL[order], catalog.codebook_sizes).save(tmp_path / "catalog")
    shuffled = replace(world, name="shuffled", data=replace(world.data, catalog=tmp_path / "catalog"))
    assert share_of_best(shuffled) < 0.85
