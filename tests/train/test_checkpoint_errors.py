"""Checkpoints and run directories that do not fit: resuming and evaluating refuse them, and change nothing."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest

from sidrec import cli
from sidrec.checkpoint import checkpoint_store
from sidrec.config import ConfigError, Recipe, save
from sidrec.io.places import local_path
from sidrec.sid.catalog import Catalog
from sidrec.train.run_directory import RunDirectory
from tests.small_log import ITEMS_COUNT, small_recipe, write_small_log
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


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.rglob(pattern)
    return found


def flip(path: Path) -> None:
    """Another value in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGED_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tensors": (
        lambda c: only(c, "*.safetensors").unlink(),
        r"{c}/rank-0.safetensors: expected a file of \d+ bytes, got none",
    ),
    "tensors cut off": (
        lambda c: truncate(only(c, "*.safetensors")),
        r"{c}/rank-0.safetensors: expected a file of \d+ bytes, got \d+",
    ),
    "another value": (
        lambda c: flip(only(c, "*.safetensors")),
        r"{c}/rank-0.safetensors: expected the CRC-32 [\da-f]+ of its index, got [\da-f]+",
    ),
    "another position": (
        lambda c: edit(c / "position.json", '"step": ', '"step": 1'),
        r"{c}/position.json: expected a file of \d+ bytes, got \d+",
    ),
    "no index": (lambda c: (c / "index.json").unlink(), "{c}/index.json: expected the checkpoint's index, got .*"),
    "nothing in the index": (
        lambda c: (c / "index.json").write_bytes(b""),
        "{c}/index.json: expected the checkpoint's index as JSON, got .*",
    ),
    "no position": (
        lambda c: (c / "position.json").write_text("{{"),
        "{c}/position.json: expected the position of a training, got Invalid JSON: .*",
    ),
    "half a position": (
        lambda c: (c / "position.json").write_text('{"step": 3, "epoch": 0, "catalog": null}'),
        "{c}/position.json: expected the position of a training, got epoch_step.Field required",
    ),
    "of other software": (
        lambda c: (c / "index.json").replace(c / ".metadata"),
        "{c}/index.json: expected the checkpoint's index, got No such file or directory",
    ),
}


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize("fault", DAMAGED_CHECKPOINTS)
def test_no_checkpoint_but_a_damaged_one(
    fault: str, command: str, run: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks, expected = DAMAGED_CHECKPOINTS[fault]
    checkpoint = only(run.run, "step-*")
    breaks(checkpoint)
    before = content(run.run)
    sentence = refusal(capsys, again(command, run))
    none = f"; no checkpoint in {checkpoint.parent} is sound, remove the folder to start from the beginning"
    assert re.fullmatch(expected.format(c=re.escape(str(checkpoint))) + re.escape(none), sentence), sentence
    assert content(run.run) == before


def test_the_one_before_a_damaged_checkpoint(finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Training sets the damaged one aside and saves its step again; evaluation passes it over and changes nothing."""
    recipe = small_recipe(finished, name="two", train={"epochs": 2, "runs": str(tmp_path)})
    assert start(recipe) == 0
    older, newer = sorted((recipe.run / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    metrics, tensors = (recipe.run / "metrics.json").read_text(), (newer / "rank-0.safetensors").read_bytes()
    flip(newer / "rank-0.safetensors")
    capfd.readouterr()

    assert again("evaluate", recipe) == 0
    said = capfd.readouterr().err
    assert said.endswith(f"; this checkpoint is passed over, {older.name} taken\n")
    assert (recipe.run / "metrics.json").read_text() != metrics
    assert {path.name for path in newer.parent.iterdir()} == {older.name, newer.name}

    assert again("train", recipe) == 0
    said = capfd.readouterr().err
    assert f"; this checkpoint is set aside as {newer.name}.damaged, {older.name} taken\n" in said
    assert {path.name for path in newer.parent.iterdir()} == {older.name, newer.name, f"{newer.name}.damaged"}
    assert (newer / "rank-0.safetensors").read_bytes() == tensors
    assert (recipe.run / "metrics.json").read_text() == metrics

    shutil.rmtree(older)
    shutil.rmtree(newer)
    expected = f"{newer.parent}: expected a sound checkpoint, got only {newer.name}.damaged"
    assert refusal(capfd, again("train", recipe)).startswith(expected)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_another_catalog_than_the_checkpoints(command: str, run: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run.run)
    trained_with = json.loads((run.data.catalog / "catalog.json").read_bytes())["fingerprint"]
    codes_NL = np.random.default_rng(5).integers(0, 4, size=(ITEMS_COUNT, 3))
    other = Catalog(np.arange(1, ITEMS_COUNT + 1), codes_NL, (4, 4, 4))
    other.save(local_path(run.data.catalog, "catalog"))
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
    expected = "table user_id: expected 99 rows as this recipe's data have, the checkpoint's has 41"
    assert sentence.startswith(f"{only(run.run, 'step-*')}: {expected}")


def test_a_log_of_another_length(run: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many users and items, and the same catalog; 5 steps an epoch instead of 4."""
    write_small_log(tmp_path / "longer", rows=300)
    data = replace(run.data, path=tmp_path / "longer" / "data")
    save(replace(run, data=data), run.run / "config.yaml")
    checkpoint = only(run.run, "step-*")
    expected = f"{checkpoint}: expected the log it was trained on, got one of 5 steps, not step 4 as step 0 of epoch 1"
    assert refusal(capsys, again("train", run)) == expected


def test_the_last_checkpoint_must_be_written(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full from the start: the first checkpoint's failure is said, the last one's ends the run."""
    recipe = small_recipe(finished, train={"epochs": 2, "runs": str(tmp_path)})
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    disk = SimpleNamespace(disk_usage=lambda _: full, rmtree=shutil.rmtree)
    with patch.object(checkpoint_store, "shutil", disk):
        assert start(recipe) == 2
    first, last = (line for line in capsys.readouterr().err.splitlines() if line.startswith("sidrec:"))
    room = r"expected room for a checkpoint of [\d,]+ bytes, got 1,000"
    folder = re.escape(str(recipe.run / "checkpoints"))
    assert re.fullmatch(f"sidrec: a checkpoint was not saved, 1 in a row: {folder}: {room}", first), first
    ended = f"sidrec: error: {folder}: expected checkpoints to be saved, got: the last one failed: {folder}: {room}"
    assert re.fullmatch(ended, last), last
    assert list((recipe.run / "checkpoints").iterdir()) == []
    assert start(recipe) == 0


def test_the_directory_of_another_recipe(run: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run.run)
    status = cli.main(["train", str(run.run / "config.yaml"), "--optimizer.dense.lr", "0.5"])
    expected = f"{run.run}: expected a run of this recipe, got one that differs in optimizer; "
    assert refusal(capsys, status).startswith(expected)
    assert content(run.run) == before


def test_what_evaluate_needs(run: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        refusal(capsys, cli.main(["evaluate"]))
        == "sidrec evaluate: expected RUN, got nothing (sidrec evaluate --help lists all)"
    )
    expected = f"{tmp_path / 'none'}: expected a run directory with config.yaml, got none; there are {run.run}"
    assert refusal(capsys, cli.main(["evaluate", str(tmp_path / "none")])).startswith(expected)
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


def test_which_checkpoint_is_evaluated(run: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = run.run / "checkpoints"
    (whole,) = checkpoints.iterdir()
    assert cli.main(["evaluate", str(run.run), "--checkpoint", whole.name]) == 0
    capsys.readouterr()
    for flags, expected in {
        (
            "--checkpoint",
            "step-99",
        ): f"{checkpoints}: expected one of its checkpoints, got step-99; it has {whole.name}",
        ("--checkpoint", "latest"): "--checkpoint: expected newest, best or step-N, got latest",
        ("--checkpoint",): (
            "sidrec evaluate: expected a value after --checkpoint, got nothing (sidrec evaluate --help lists all)"
        ),
        ("--checkpoint", ""): "--checkpoint: expected newest, best or step-N, got nothing",
    }.items():
        assert refusal(capsys, cli.main(["evaluate", str(run.run), *flags])) == expected
    sentence = refusal(capsys, cli.main(["evaluate", "--checkpoint=best", str(run.run)]))
    assert sentence.startswith(f"{checkpoints}/best.json: expected the record of a best checkpoint")


def test_a_run_goes_on_with_another_number_of_loader_processes(run: Recipe) -> None:
    for workers in (None, 0, 2):
        RunDirectory(run.run).check(replace(run, data=replace(run.data, workers=workers)))
    with pytest.raises(ConfigError, match="got one that differs in data; "):
        RunDirectory(run.run).check(replace(run, data=replace(run.data, lanes=2)))
