"""Comparisons of runs: verdicts, recipes, and runs that cannot be compared."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from sidrec import cli
from sidrec.io.files import write_json
from sidrec.metrics.exact import measure
from sidrec.metrics.resampling import LogLoss
from sidrec.report.compare import as_text, compare, verdict, write_page
from sidrec.report.run_page import write_report
from sidrec.study.intervals import Difference
from sidrec.train.run_directory import EVALUATION
from tests.bench.test_page import OUTSIDE, Page
from tests.report.made_up_run import made_up_run, predictions
from tests.small_log import write_small_log


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("comparisons"))


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Path]:
    """weak and strong differ in their scores, twin has those of weak."""
    return {
        "weak": made_up_run(folder, "weak", 0.2, kind="hid"),
        "strong": made_up_run(folder, "strong", 3.0, train={"epochs": 4}),
        "twin": made_up_run(folder, "twin", 0.2, kind="hid"),
    }


def test_a_better_run_wins_a_twin_ties(runs: dict[str, Path]) -> None:
    found = compare(list(runs.values()), "test")
    verdicts = {(line.run, line.metric): line.verdict for line in found.lines if line.slice == "all"}
    assert {verdicts[(str(runs["strong"]), metric)] for metric in ("auc", "gauc", "uauc", "ne", "log_loss")} == {"won"}
    twins = [line for line in found.lines if line.run == str(runs["twin"]) and line.difference]
    assert twins
    assert {line.verdict for line in twins} <= {"tied", "few users"}
    assert {line.verdict for line in twins if line.slice == "all"} == {"tied"}
    assert all(line.difference and line.difference["difference"] == 0 for line in twins)
    turned = compare([runs["strong"], runs["weak"]], "test")
    assert {line.verdict for line in turned.lines if line.slice == "all"} == {"lost"}


def test_text(runs: dict[str, Path]) -> None:
    found = compare([runs["weak"], runs["strong"]], "test")
    text = as_text(found)
    assert found.recipes["model.item.kind"] == ["hid", "sid_coord"]
    assert found.recipes["train.epochs"] == ["2", "4"]
    assert "name" not in found.recipes
    assert found.facts["step time, ms (median of the log)"] == ["100.0", "100.0"]  # 64 rows at 640 samples/s
    assert "B against A: " in text
    assert "Each run is one seed" in text
    value = measure(*(getattr(predictions(3.0), name) for name in ("label_N", "score_N", "user_N")))["auc"]
    assert f"{value:.4f}" in text


def test_page(runs: dict[str, Path], tmp_path: Path) -> None:
    page = Page(write_page(compare(list(runs.values()), "test"), tmp_path / "c.html"))
    assert page.scripts == []
    assert not [key for key, _ in page.attributes if key in OUTSIDE]
    assert "won" in page.text


@pytest.mark.parametrize(
    ("metric", "ends", "users", "expected"),
    [
        ("auc", (0.1, 0.05, 0.2), 30, "won"),
        ("auc", (-0.1, -0.2, -0.05), 30, "lost"),
        ("auc", (0.1, -0.1, 0.2), 30, "tied"),
        ("ne", (0.1, 0.05, 0.2), 30, "lost"),
        ("ne", (-0.1, -0.2, -0.05), 30, "won"),
        ("log_loss", (-0.1, -0.2, 0.0), 30, "tied"),
        ("gauc", (0.1, 0.05, 0.2), 29, "few users"),
        ("gauc", None, 30, "-"),
        ("gauc", None, 0, "-"),
    ],
)
def test_verdicts(metric: str, ends: tuple[float, float, float] | None, users: int, expected: str) -> None:
    moved = None if ends is None else Difference(difference=ends[0], low=ends[1], high=ends[2], resamples=9)
    assert verdict(metric, moved, users) == expected


def test_runs_that_cannot_be_compared(runs: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weak = str(runs["weak"])
    others = {
        "other rows": (
            made_up_run(folder, "rows", scored=predictions(1.0, seed=5)),
            "expected the rows of every other",
        ),
        "fewer rows": (
            made_up_run(folder, "fewer", scored=predictions(1.0, rows=299)),
            "expected the rows of every other",
        ),
        "no predictions": (made_up_run(folder, "unsaved", saved=False), "sidrec evaluate"),
        "not evaluated": (made_up_run(folder, "begun", evaluated=False), "expected an evaluated split test, got none"),
        "itself": (runs["weak"], "at least two different runs"),
        "no run": (folder, "expected a run directory with config.yaml"),
    }
    for name, (other, message) in others.items():
        assert cli.main(["compare", weak, str(other)]) == 2, name
        error = capsys.readouterr().err
        assert message in error, name
        assert str(other) in error, name
    assert cli.main(["compare", weak]) == 2
    assert cli.main(["compare", weak, str(runs["twin"]), "--split", "tset"]) == 2
    assert "did you mean test" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(3))
def test_log_loss_on_resamples_is_that_of_repeated_rows(seed: int) -> None:
    random = np.random.default_rng(seed)
    label, score = (random.random(60) < 0.3).astype(np.float32), random.normal(size=60).astype(np.float32)
    user = random.integers(0, 9, 60)
    multiplicity = np.bincount(random.integers(0, 9, 9), minlength=9)[None, :]
    rows = np.repeat(np.arange(60), multiplicity[0, user])
    expected = measure(label[rows], score[rows], user[rows])
    ne, log_loss = LogLoss.of(label, score, user, 9).resampled(multiplicity)
    assert (ne[0], log_loss[0]) == (pytest.approx(expected["ne"]), pytest.approx(expected["log_loss"]))


def test_runs_and_evaluations_of_an_earlier_version(tmp_path: Path) -> None:
    """Runs without evaluations.jsonl, warnings.txt and histograms; paths are relative to the folder of training."""
    shutil.copytree(Path(__file__).parents[1] / "golden/v0.1.0/artifacts", tmp_path / "old")
    with contextlib.chdir(tmp_path / "old"):
        for run in ("one", "two"):
            assert cli.main(["report", f"runs/{run}/seed0"]) == 0
        found = compare([Path("runs/one/seed0"), Path("runs/two/seed0")], "test")
    assert found.recipes["optimizer.tables.kind"] == ["adagrad", "rowwise_adagrad"]
    assert {line.verdict for line in found.lines if line.slice == "torso" and line.metric == "gauc"} == {"few users"}


def test_evaluations_on_other_data(runs: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    """Folders that `sidrec evaluate --data` writes are reported and compared as runs are."""
    others = []
    for name in ("weak", "strong"):
        out = tmp_path / name
        out.mkdir()
        write_json(out / EVALUATION, {"run": str(runs[name]), "data": str(folder / "data")})
        for file in ("metrics.json", "predictions_test.parquet"):
            shutil.copy(runs[name] / file, out / file)
        others.append(out)
    found = compare(others, "test")
    assert {line.verdict for line in found.lines if line.slice == "all"} == {"won"}
    text = Page(write_report(others[1], tmp_path / "report.html")).text
    assert str(others[1]) in text
    assert str(runs["strong"]) in text
