"""A run of yesterday's log, which new runs start from, and the log of today."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from sidrec.config import Recipe
from sidrec.sid.catalog import Catalog, load_catalog
from tests.small_log import small_recipe, write_small_log

WIDE: dict[str, Any] = {"model": {"embedding_dim": 16}}  # so that columns can be cut
STATE = {"adagrad": "sum", "rowwise_adagrad": "row_sum"}


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    return small_recipe(folder, **{**WIDE, "train": {"epochs": 1, "runs": str(folder / "runs")}, **sections})


def run_of(folder: Path, kind: str = "adagrad") -> Path:
    return folder / "runs" / kind / "seed0"


def grown(folder: Path, to: Path) -> Path:
    """The log of another day: it knows more users and items than before, and its catalog is extended."""
    shutil.copytree(folder / "data", to / "data")
    old = load_catalog(folder / "catalog")
    codes_NL = np.concatenate([old.codes_NL, [[number % 4, 3 - number % 4, number // 3] for number in range(9)]])
    extension_N = np.repeat([0, 1], [len(old), 9])
    Catalog(np.arange(1, 70), codes_NL, old.codebook_sizes, extension_N=extension_N).save(to / "catalog")
    path = to / "data" / "log" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["ids"] |= {"user_id": 50, "item_id": 70}
    path.write_text(json.dumps(manifest))
    return to


def other_catalog(folder: Path) -> None:
    write_small_log(folder / "other", seed=1)
    shutil.rmtree(folder / "catalog")
    (folder / "other" / "catalog").rename(folder / "catalog")
