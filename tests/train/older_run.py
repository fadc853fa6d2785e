"""A run of yesterday's log, which new runs start from, and the log of today."""

import json
import shutil
from pathlib import Path
from typing import Any

from sidrec.config import Recipe
from tests.small_log import small_recipe, write_small_log

WIDE: dict[str, Any] = {"model": {"embedding_dim": 16}}  # so that columns can be cut
STATE = {"adagrad": "sum", "rowwise_adagrad": "row_sum"}


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    return small_recipe(folder, **{**WIDE, "train": {"epochs": 1, "runs": str(folder / "runs")}, **sections})


def run_of(folder: Path, kind: str = "adagrad") -> Path:
    return folder / "runs" / kind / "seed0"


def grown(folder: Path, to: Path) -> Path:
    """The log of another day: it knows more users and items than before."""
    shutil.copytree(folder / "data", to / "data")
    shutil.copytree(folder / "catalog", to / "catalog")
    path = to / "data" / "log" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["ids"] |= {"user_id": 50, "item_id": 70}
    path.write_text(json.dumps(manifest))
    return to


def other_catalog(folder: Path) -> None:
    write_small_log(folder / "other", seed=1)
    shutil.rmtree(folder / "catalog")
    (folder / "other" / "catalog").rename(folder / "catalog")
