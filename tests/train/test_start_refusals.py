"""What a new run cannot start from: one sentence, before anything is allocated, and on all ranks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidrec.checkpoint.stored_tables import open_checkpoint
from sidrec.config import ConfigError, Recipe
from sidrec.errors import RankError
from sidrec.schema import ContractError
from sidrec.train.assembly import open_dataset
from sidrec.train.warm_start import find_warm_start
from tests.ranks import joined, run_on_ranks
from tests.train.older_run import WIDE, grown, other_catalog, recipe_of, run_of
from tests.train.refusals import refusal, start


def fewer_users(folder: Path) -> None:
    path = folder / "data" / "log" / "manifest.json"
    path.write_text(
        path.read_text().replace('"user_id": 50', '"user_id": 41').replace('"item_id": 70', '"item_id": 61')
    )
    edited = json.loads(path.read_text())
    edited["ids"]["cat_a"] = 4
    path.write_text(json.dumps(edited))


def unchanged(folder: Path) -> None:
    pass


MANAGED = {"kind": "hid", "hid_index": {"kind": "managed_collision", "rows": 16}}
HASHED = {"kind": "sid_coord", "hid_index": {"kind": "modulo", "rows": 61}}
OLD = {"checkpoint": "OLD"}


@pytest.mark.parametrize(
    ("sections", "change", "sentence"),
    [
        ({"start": {"checkpoint": "nowhere"}}, unchanged, "nowhere: expected a run directory with checkpoints, or one"),
        ({"start": {**OLD, "without": ["hit"]}}, unchanged, "got hit; did you mean hid?"),
        ({"start": {"tables": {"user": "a.npy"}}}, unchanged, "got user; did you mean user_id?"),
        ({"start": {"tables": {"hid": "gone.npy"}}}, unchanged, "gone.npy: expected a file with rows of the table hid"),
        (
            {"start": {"tables": {"hid": "wide.npy"}}},
            unchanged,
            "expected at most 70 rows of width 16, as the table hid",
        ),
        ({"start": {"tables": {"hid": "long.npy"}}}, unchanged, "has, got 71 of width 16"),
        ({"start": {"tables": {"hid": "nan.npy"}}}, unchanged, "nan.npy, row 40, column 3: expected a finite float32"),
        (
            {"start": OLD},
            other_catalog,
            "other rows; start.old_catalog carries its tables over; start.without: [s1, s2, s3, s12, s23] starts these",
        ),
        ({"start": OLD}, fewer_users, "expected the table cat_a of F32 [4, 16], as this model has, got F32 [5, 16]"),
        ({"start": OLD, "model": {"embedding_dim": 32}}, unchanged, "expected the table hid of F32 [70, 32], as this"),
        ({"start": OLD, "model": {**WIDE["model"], "item": HASHED}}, unchanged, "expected the hid_index ExactIndex"),
        ({"start": OLD, "model": {**WIDE["model"], "item": MANAGED}}, unchanged, "got hid_index: managed_collision"),
        ({"start": {"tables": {"hid": "one.npy"}}, "model": {"item": MANAGED}}, unchanged, "got hid, which is managed"),
        ({"start": OLD, "model": {**WIDE["model"], "context": ["user_id"]}}, unchanged, "got the table cat_a"),
        ({"start": OLD, "model": {**WIDE["model"], "item": {"kind": "hid"}}}, unchanged, "got the table s1"),
        ({"start": OLD, "optimizer": {"tables": {"kind": "sgd"}}}, unchanged, "expected the optimizer.tables adagrad"),
        ({"start": OLD, "optimizer": {"dense": {"kind": "adagrad"}}}, unchanged, "expected the optimizer.dense adam"),
    ],
)
def test_refusals(
    sections: dict[str, Any],
    change: Callable[[Path], None],
    sentence: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.zeros((71, 16), np.float32)
    np.save("long.npy", rows)
    np.save("wide.npy", rows[:, :8])
    rows[40, 3] = np.nan
    np.save("nan.npy", rows[:61])
    np.save("one.npy", rows[:1])
    change(grown(trained, tmp_path))
    text = json.dumps(sections).replace("OLD", str(run_of(trained)))
    recipe = recipe_of(tmp_path, **json.loads(text))
    assert sentence in refusal(capsys, start(recipe))
    assert not recipe.run.exists(), "nothing is left behind"


def refused(rank: int, world: int, recipe: Recipe) -> str:
    ranks = joined(rank, world)
    data = open_dataset(recipe, ranks)
    with pytest.raises((ContractError, RankError)) as error:
        find_warm_start(recipe, data, ranks)
    return str(error.value)


def test_what_one_rank_finds_in_its_share_stops_all(trained: Path, tmp_path: Path) -> None:
    rows = np.zeros((40, 16), np.float32)
    rows[39, 15] = np.inf
    np.save(tmp_path / "inf.npy", rows)
    recipe = recipe_of(trained, start={"tables": {"hid": f"{tmp_path}/inf.npy"}})
    sentence = f"{tmp_path}/inf.npy, row 39, column 15: expected a finite float32, got inf"
    assert run_on_ranks(2, refused, recipe) == [f"rank 1 stopped: {sentence}", sentence]


def test_a_damaged_checkpoint_is_no_start(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(open_checkpoint(run_of(trained)).path, tmp_path / "step-1")
    shutil.copy(run_of(trained) / "config.yaml", tmp_path / "step-1")
    file = tmp_path / "step-1" / "rank-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    recipe = recipe_of(grown(trained, tmp_path), start={"checkpoint": str(tmp_path / "step-1")})
    assert "expected the CRC-32" in refusal(capsys, start(recipe))


def test_without_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start: expected no `without` where there is no checkpoint, got hid"):
        recipe_of(tmp_path, start={"without": ["hid"]})
