"""The page of targets: current, its commands and files exist, and a bound is kept or not."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from benchmarks.targets import page as targets
from benchmarks.targets.computed import Measured
from benchmarks.targets.page import PAGE, ROOT, Target, load_targets, page

TOPICS = load_targets()
TARGETS = [target for of in TOPICS.values() for target in of]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(TOPICS), "run python -m benchmarks.targets"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.target[:60])
def test_its_command_and_files_exist(target: Target) -> None:
    program, *words = shlex.split(target.again)
    if program == "python":
        assert words[0] == "-m"
        assert importlib.util.find_spec(words[1]) is not None
        assert words[1].partition(".")[0] in ("benchmarks", "tests")
    elif program == "make":
        assert re.search(rf"^{words[0]}:", MAKEFILE, re.MULTILINE)
    else:
        assert program in ("pytest", "sidrec")
    paths = [word for word in words if re.match(r"(benchmarks|tests)/", word)] + list(target.sources)
    assert all((ROOT / path).exists() for path in paths)


def _target(**keys: object) -> Target:
    return Target(**{"target": "a", "command": "make test", **keys})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bound", "kept"),
    [
        ({"at_most": 2}, True),
        ({"at_least": 2.5}, False),
        ({"above": 1}, True),
        ({"shown_above": 1.5}, False),
        ({"not_shown_below": 3}, True),
        ({"not_shown_below": 3.1}, False),
        ({}, None),
    ],
)
def test_a_bound_is_held_against_the_value_or_the_interval(bound: dict[str, float], kept: bool | None) -> None:
    assert _target(**bound).keeps(Measured(2, 1, 3)) is kept


def test_a_target_is_met_by_all_its_figures_in_part_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(targets, "ROOT", tmp_path)
    (tmp_path / "recorded.json").write_text(
        '{"commit": "c1", "fast": [1, 0.5, 2], "slow": {"ratio": 3, "low": 2, "high": 4}}'
    )
    row = {"source": "recorded.json", "figures": {"one": ("fast",), "two": ("slow",)}, "conditions": "one thread"}
    assert _target(**row, at_most=3).met() == "yes"
    assert _target(**row, at_most=1).met() == "in part: 1 of 2"
    assert _target(**row, at_most=0.5).met() == "no"
    assert _target(**row).met() == "no bound set"
    assert _target().met() == "no recorded result"
    assert _target(asserted=("tests/bench",)).met() == "asserted by tests"
    line = page({"Topic": [_target(**row, at_most=1)]}).splitlines()[-1]
    figures = "one 1.00 [0.50, 2.00], two 3.00 [2.00, 4.00]"
    assert line == f"| a | in part: 1 of 2 | {figures} | one thread; commit c1; `recorded.json` | `make test` |"
