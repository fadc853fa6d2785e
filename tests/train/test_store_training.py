"""A run whose data and catalog lie in a store is the run of the same files on disk, killed and resumed or not."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sidrec.config import Recipe
from sidrec.io.places import StorePath
from tests.ranks import RankError, run_on_ranks
from tests.s3_server import Store
from tests.small_log import small_recipe, write_small_log
from tests.train.test_resume import continued, killed_with_a_checkpoint, losses, uninterrupted


def in_environment(
    rank: int,
    world: int,
    environment: dict[str, str],
    function: Callable[[int, int, Recipe], int | None],
    recipe: Recipe,
) -> int | None:
    """Calls the function where the store can be reached: ranks are forks of a process that started earlier."""
    os.environ.update(environment)
    return function(rank, world, recipe)


def test_killed_and_resumed_from_a_store_equals_uninterrupted_from_disk(tmp_path: Path, store: Store) -> None:
    reach = store.environment | {"SIDREC_CACHE": str(tmp_path / "cache")}
    write_small_log(tmp_path, rows=600)
    for name in ("data", "catalog"):
        store.bucket(f"run-{name}", tmp_path / name)
    sections = {"train": {"epochs": 2, "log_every": 3}, "checkpoint": {"every": 7}, "model": {"item": {"kind": "sid"}}}
    whole = small_recipe(tmp_path, name="whole", **sections)
    killed = small_recipe(tmp_path, name="killed", **sections, data={"workers": 1})
    places = {name: StorePath("s3", f"run-{name}", "") for name in ("data", "catalog")}
    killed = replace(killed, data=replace(killed.data, path=places["data"], catalog=places["catalog"]))
    run_on_ranks(2, uninterrupted, whole)

    with pytest.raises(RankError, match=f"[01]: -{signal.SIGKILL.value}"):
        run_on_ranks(2, in_environment, reach, killed_with_a_checkpoint, killed)
    assert not (killed.run / "metrics.json").exists(), "the run was over before it could be killed"
    store.faults(("GET", ".parquet", 4, 503))
    assert min(run_on_ranks(2, in_environment, reach, continued, killed)) >= 7
    assert losses(killed) == losses(whole)
    assert (killed.run / "metrics.json").read_bytes() == (whole.run / "metrics.json").read_bytes()
    assert "s3://run-data" in (killed.run / "config.yaml").read_text()
    for path in killed.run.rglob("*"):
        assert path.is_dir() or b"secret-of-tests" not in path.read_bytes()
    assert json.loads((killed.run / "metrics.json").read_text())["test"]["all"]["rows"] == 200
