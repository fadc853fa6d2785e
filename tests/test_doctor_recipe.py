"""The doctor on a recipe, on a machine without problems."""

import json
from pathlib import Path

import pytest

from sidrec import cli
from sidrec.cli.doctor import doctor
from sidrec.config import save
from sidrec.preflight import Finding
from tests.small_log import small_recipe, write_small_log
from tests.train.refusals import TRAIN, truncate


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    save(small_recipe(write_small_log(tmp_path)), tmp_path / "recipe.yaml")
    return tmp_path / "recipe.yaml"


SOUND = Finding("stack", "ok", "well")


def examined(
    capsys: pytest.CaptureFixture[str], *words: str, machine: Finding = SOUND
) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit status and findings by name. machine: what the machine's checks found."""
    status = doctor([*words, "--json"], lambda: [machine])
    return status, {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_a_sound_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = examined(capsys, str(recipe), "--world", "2", "--all-files", "--train.epochs", "3")
    assert status == 0
    assert {name for name, finding in found.items() if finding["state"] != "ok"} == {"checksums", "duration"}
    assert found["plan"]["found"].startswith("8 table(s) on 2 rank(s): ")
    assert found["sampled rows"]["found"] == "keep the contract (600 of 600 rows of train; 200 of 200 rows of test)"
    assert "2 rank(s) will take about " in found["fits memory"]["found"]
    assert "a process with its libraries " in found["fits memory"]["found"]
    assert found["duration"]["found"] == "unknown until the first steps are done"
    assert not (recipe.parent / "runs").exists()


def test_what_training_would_refuse_is_a_problem(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert examined(capsys, str(recipe), "--world", "3")[1]["recipe"]["found"] == (
        "data.lanes: expected a multiple of the number of ranks = 3, got 4"
    )
    truncate(recipe.parent / TRAIN)
    status, found = examined(capsys, str(recipe))
    assert status == 1
    assert "train/part-0.parquet: expected a whole parquet file, got " in found["recipe"]["found"]


def test_some_steps_are_measured(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 rows would be 16 steps; five of them are to warm up."""
    status, found = examined(capsys, str(recipe), "--data.batch-size", "32", "--measure")
    assert status == 0, found
    assert found["duration"]["state"] == "ok"
    assert "for 1,200 rows at " in found["duration"]["found"]
    assert "as measured just now over 14 steps on 1 rank(s)" in found["duration"]["found"]
    assert not (recipe.parent / "runs").exists()


def test_too_few_steps_to_measure(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = examined(capsys, str(recipe), "--data.batch-size", "200", "--measure")
    assert status == 1
    assert found["measured steps"]["found"].endswith("expected an epoch of at least 8 steps, got 3")


def test_a_machine_with_a_problem_is_repaired_first(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Finding("stack", "problem", "no torch")
    _, found = examined(capsys, str(recipe), machine=broken)
    assert found["recipe"]["found"] == "not looked at before this is repaired: stack"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seed", "3"], "sidrec doctor: expected a recipe before flags of one, got --seed"),
        (["nowhere.yaml"], "nowhere.yaml: expected a readable recipe, got "),
    ],
)
def test_flags_that_make_no_sense(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", *words]) == 2
    assert sentence in capsys.readouterr().err
