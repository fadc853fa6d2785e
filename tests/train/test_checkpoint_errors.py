"""Checkpoints and run directories that do not fit: resuming and evaluating refuse them, and change nothing."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidrec import cli
from sidrec.config import Recipe, save
from sidrec.sid.catalog import Catalog
from tests.small_log import ITEMS_COUNT, write_small_log
from tests.train.refusals import recipe_of, refusal, start, truncate


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = write_small_log(tmp_path_factory.mktemp("finished"), rows=200)
    assert start(recipe_of(folder)) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Recipe:
    """A finished run with a catalog of its own, to break."""
    recipe = recipe_of(finished)
    data = replace(recipe.data, catalog=Path(shutil.copytree(finished / "catalog", tmp_path / "catalog")))
    copy = replace(recipe, data=data, train=replace(recipe.train, runs=tmp_path / "runs"))
    shutil.copytree(recipe.run, copy.run)
    save(copy, copy.run / "config.yaml")
    return copy


def again(command: str, recipe: Recipe) -> int:
    """Resumes or evaluates."""
    return cli.main(["train", str(recipe.run / "config.yaml")] if command == "train" else ["evaluate", str(recipe.run)])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.rglob(pattern)
    return found


DAMAGED_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no state": (lambda c: only(c, "*.distcp").unlink(), r"{c}/__0_0.distcp: expected a file of \d+ bytes, got none"),
    "state cut off": (
        lambda c: truncate(only(c, "*.distcp")),
        r"{c}/__0_0.distcp: expected a file of \d+ bytes, got \d+",
    ),
    "no index": (lambda c: (c / ".metadata").unlink(), "{c}/.metadata: expected the checkpoint's index, got .*"),
    "no index inside": (
        lambda c: (c / ".metadata").write_bytes(b""),
        "{c}/.metadata: expected the checkpoint's index, got .*",
    ),
    "no position": (
        lambda c: (c / "position.json").write_text("{{"),
        "{c}/position.json: expected JSON with step, epoch, epoch_step, catalog, got Invalid JSON: .*",
    ),
    "half a position": (
        lambda c: (c / "position.json").write_text('{"step": 3, "epoch": 0, "catalog": null}'),
        "{c}/position.json: expected JSON with step, epoch, epoch_step, catalog, got epoch_step.Field required",
    ),
}


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("fault", DAMAGED_CHECKPOINTS)
def test_a_damaged_checkpoint(fault: str, command: str, run: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    breaks, expected = DAMAGED_CHECKPOINTS[fault]
    checkpoint = only(run.run, "step-*")
    breaks(checkpoint)
    before = content(run.run)
    sentence = refusal(capsys, again(command, run))
    assert re.fullmatch(expected.format(c=re.escape(str(checkpoint))), sentence), sentence
    assert content(run.run) == before


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_another_catalog_than_the_checkpoints(command: str, run: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run.run)
    trained_with = json.loads((run.data.catalog / "catalog.json").read_text())["fingerprint"]
    codes_NL = np.random.default_rng(5).integers(0, 4, size=(ITEMS_COUNT, 3))
    other = Catalog(np.arange(1, ITEMS_COUNT + 1), codes_NL, (4, 4, 4))
    other.save(run.data.catalog)
    checkpoint = only(run.run, "step-*")
    expected = f"{checkpoint}: expected the catalog {trained_with} it was trained with, got {other.fingerprint}"
    assert refusal(capsys, again(command, run)) == expected
    assert content(run.run) == before


def test_a_checkpoint_of_another_log(
    run: Recipe, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More users than the checkpoint has table rows."""
    data = Path(shutil.copytree(finished / "data", tmp_path / "data"))
    manifest = data / "log/manifest.json"
    manifest.write_text(manifest.read_text().replace('"user_id": 41', '"user_id": 99'))
    save(replace(run, data=replace(run.data, path=data)), run.run / "config.yaml")
    sentence = refusal(capsys, again("evaluate", run))
    assert sentence.startswith(f"{only(run.run, 'step-*')}: expected what this model holds, got: Size mismatch")
    assert sentence.endswith("model.context.embedding_bags.user_id.weight")


def test_the_directory_of_another_recipe(run: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run.run)
    status = cli.main(["train", str(run.run / "config.yaml"), "--optimizer.dense.lr", "0.5"])
    expected = f"{run.run}: expected a run of this recipe, got one that differs in optimizer; "
    assert refusal(capsys, status).startswith(expected)
    assert content(run.run) == before


def test_what_evaluate_needs(run: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, cli.main(["evaluate"])) == "sidrec evaluate: expected a run directory, got nothing"
    expected = f"{tmp_path / 'none'}: expected a run directory with config.yaml, got none"
    assert refusal(capsys, cli.main(["evaluate", str(tmp_path / "none")])) == expected
    assert refusal(capsys, cli.main(["evaluate", str(run.run), "tset"])).endswith("got 'tset'")
    shutil.rmtree(only(run.run, "step-*"))
    assert refusal(capsys, again("evaluate", run)) == f"{run.run / 'checkpoints'}: expected a checkpoint, got none"


def test_leavings_in_the_checkpoint_folder_do_no_harm(run: Recipe) -> None:
    """Half a checkpoint of a killed process goes with the next checkpoint; a copy that somebody made stays."""
    checkpoints = run.run / "checkpoints"
    (whole,) = checkpoints.iterdir()
    (checkpoints / "step-99.partial").mkdir()
    shutil.copytree(whole, checkpoints / "step-best")
    whole.rename(checkpoints / "aside")
    assert again("train", run) == 0
    assert sorted(path.name for path in checkpoints.iterdir()) == ["aside", whole.name, "step-best"]
