"""The commit that a recorded figure names: dirty with changed code, not with changed results."""

import subprocess
from pathlib import Path

import pytest

from sidrec.study.results import conditions


def _git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "report.md").write_text("0.7")
    (tmp_path / "code.py").write_text("a")
    return tmp_path


def test_outside_a_checkout_the_commit_is_unknown(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(checkout.parent))
    assert conditions(checkout)["commit"] == "unknown"


def test_changed_code_makes_a_figure_dirty_and_changed_results_do_not(checkout: Path) -> None:
    _git(checkout, "init", "--quiet")
    _git(checkout, "add", ".")
    _git(checkout, "commit", "--quiet", "-m", "first")
    commit = _git(checkout, "rev-parse", "--short=12", "HEAD")
    (checkout / "benchmarks" / "results" / "report.md").write_text("0.8")
    (checkout / "untracked.txt").write_text("new")
    assert conditions(checkout)["commit"] == commit
    (checkout / "code.py").write_text("b")
    assert conditions(checkout)["commit"] == f"{commit}-dirty"
