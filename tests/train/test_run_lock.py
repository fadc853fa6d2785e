"""A run directory is trained in by one process at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from sidrec.config import ConfigError
from sidrec.train.run_directory import RunLock
from tests.small_log import write_small_log
from tests.train.refusals import recipe_of, refusal, start

HOLDS = """
import sys
from pathlib import Path
from sidrec.train.run_directory import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDS, str(path)]
    process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_held_until_the_process_is_killed(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(ConfigError, match="expected a run that no other process trains, got one that is held"):
        RunLock(tmp_path).take(patience=0)
    process.kill()
    process.wait()
    lock = RunLock(tmp_path)
    lock.take(patience=0)
    lock.take(patience=0)  # what is held is not asked for again
    lock.release()
    RunLock(tmp_path).take(patience=0)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    RunLock(tmp_path / "run").take(patience=0)
    assert not (tmp_path / "run").exists()


def test_a_second_training_waits_and_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small_log(tmp_path, rows=120)
    recipe = recipe_of(tmp_path)
    assert start(recipe) == 0
    (recipe.run / "metrics.json.partial4711").write_text("killed here")
    assert start(recipe) == 0, "the first one lets go at its end"
    assert not list(recipe.run.glob("*.partial*"))
    capsys.readouterr()
    process = holder(recipe.run)
    said = refusal(capsys, start(recipe))
    process.kill()
    process.wait()
    assert said == f"{recipe.run}: expected a run that no other process trains, got one that is held"
