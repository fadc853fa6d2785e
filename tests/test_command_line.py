"""Refusals of the shared argument parser, whatever stdout can print, and the near names that they suggest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidrec.text import near_file

ENDING = "(sidrec evaluate --help lists all)"
REFUSED = {
    (): "expected RUN, got nothing",
    ("run", "--checkpoint"): "expected a value after --checkpoint, got nothing",
    ("run", "--checkpoin", "best"): "expected known options, got --checkpoin best; did you mean --checkpoint?",
}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_a_refusal_reads_the_same_in_every_encoding(words: tuple[str, ...], encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "sidrec", "evaluate", *words]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == f"sidrec: error: sidrec evaluate: {REFUSED[words]} {ENDING}\n"


@pytest.mark.parametrize(
    ("missing", "near"),
    [
        ("recipe.yml", "recipe.yaml"),
        ("recpe.yaml", "recipe.yaml"),
        ("demo/sed0/config.yaml", None),
        ("dmo/seed0", "demo"),
        ("other", None),
        ("absent/folder/x", None),
    ],
)
def test_a_missing_file_is_compared_by_name_and_not_by_its_folders(
    tmp_path: Path, missing: str, near: str | None
) -> None:
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "demo").mkdir()
    assert near_file(tmp_path / missing) == (f"; did you mean {tmp_path / near}?" if near else "")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "r\u00e9cipe \u6f22"), ("ascii", r"r\xe9cipe \u6f22"), ("latin-1", "r\u00e9cipe \\u6f22")],
)
@pytest.mark.parametrize("words", [("recipe", "show"), ("init", "demo"), ("plan",)], ids=" ".join)
def test_what_a_terminal_cannot_show_is_escaped(
    words: tuple[str, ...], encoding: str, shown: str, tmp_path: Path
) -> None:
    """On stdout as on stderr, of commands that succeed as of those that are refused."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    target = tmp_path / "r\u00e9cipe \u6f22"
    if words[0] == "recipe":
        target.write_text("name: x\ndata: {path: d, catalog: c}\nmodel: {item: {kind: hid}}\n")
    command = [sys.executable, "-m", "sidrec", *words, str(target)]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    said = (ended.stdout + ended.stderr).decode(encoding)
    assert "Traceback" not in said
    if words[0] != "recipe":
        assert shown in said
    assert ended.returncode == (2 if words[0] == "plan" else 0)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_value_of_the_wrong_type_is_one_message(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "sidrec", "plan", "recipe.yaml", "--world", "x"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    start = "sidrec: error: sidrec plan: --world: invalid literal for int() with base 10: 'x'"
    assert ended.stderr == f"{start} (sidrec plan --help lists all)\n"


def test_a_file_that_exists_has_no_near_name(tmp_path: Path) -> None:
    assert near_file(tmp_path) == ""
