"""Trackers: what an evaluation gives to them, TensorBoard's files, MLflow and W&B, and trackers that fail."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sidrec.config import Recipe
from sidrec.train import tracking
from sidrec.train.run_directory import RunDirectory
from sidrec.train.tracking import BINS, Evaluation, Mlflow, Tracking, Wandb, flat, known_id
from tests.small_log import small_recipe, write_small_log
from tests.train.refusals import start


def found(**changed: Any) -> Evaluation:
    return Evaluation(
        **{
            "split": "test",
            "step": 7,
            "metrics": {"all": {"auc": 0.75, "rows": 4, "ne": None}, "cold": {"auc": None, "gauc": 0.5}},
            "gate_N": np.array([0.2, 0.4, 0.6, 1.0], dtype=np.float32),
            "exposures_N": np.array([0, 9, 10, 1000], dtype=np.float32),
            "attention": {"weights": {"s1": 0.25}, "histogram": {"s1": [3] + [0] * (BINS - 1)}},
            **changed,
        }
    )


def test_values_of_an_evaluation() -> None:
    values = {name: round(value, 6) for name, value in found().scalars().items()}
    assert values == {
        "test/all/auc": 0.75,
        "test/cold/gauc": 0.5,
        "test/gate/0": 0.2,
        "test/gate/1-9": 0.4,
        "test/gate/10-99": 0.6,
        "test/gate/1000-9999": 1.0,
        "test/attention/s1": 0.25,
    }
    counts = found().histograms()
    assert sum(counts["test/gate"]) == 4
    assert counts["test/gate"][-1] == 1
    assert counts["test/attention/s1"][0] == 3


@pytest.mark.parametrize("without", ["gate_N", "exposures_N", "attention"])
def test_models_without_a_part(without: str) -> None:
    values = found(**{without: None})
    names = {name.split("/")[1] for name in values.scalars()}
    assert ("attention" in names) == (without != "attention")
    assert ("gate" in names) == (without == "attention")
    assert ("test/gate" in values.histograms()) == (without != "gate_N")
    assert json.loads(values.line())["metrics"] == found().metrics


class Fake:
    """In place of the modules mlflow and wandb."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.entities = SimpleNamespace(
            Metric=lambda name, value, timestamp, step: (name, value, step), Param=lambda key, value: (key, value)
        )

    def MlflowClient(self, tracking_uri: str) -> "Fake":  # noqa: N802
        self.calls.append(("client", tracking_uri))
        return self

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return f"experiment {name}"

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.calls.append(("run", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def log_batch(self, run: str, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
        assert len(params) <= 100
        self.calls += [("param", *param) for param in params] or [("batch", run, *metrics)]

    def set_terminated(self, run: str) -> None:
        self.calls.append(("end", run))

    def init(self, **settings: Any) -> "Fake":
        self.calls.append(("init", settings["project"], settings["name"], settings["id"], settings["resume"]))
        return self

    def define_metric(self, *names: str, step_metric: str) -> None:
        self.calls.append(("step", step_metric))

    def log(self, values: Mapping[str, Any]) -> None:
        self.calls.append(("log", dict(values)))

    def Histogram(self, np_histogram: Any) -> str:  # noqa: N802
        return f"{int(np_histogram[0].sum())} values in {len(np_histogram[1]) - 1} bins"

    def finish(self) -> None:
        self.calls.append(("finish",))


def recipe_in(folder: Path, **train: Any) -> tuple[Recipe, RunDirectory]:
    recipe = small_recipe(folder, name="tracked", train=train)
    recipe.run.mkdir(parents=True)
    return recipe, RunDirectory(recipe.run)


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe, run = recipe_in(tmp_path)
    fake = Fake()
    for _ in range(2):  # the second resumes
        tracker = Mlflow(run, recipe, 0, fake)
        tracker.scalars({"train/loss": 0.5}, 3)
        tracker.close()
    assert fake.calls[0] == ("client", (tmp_path / "runs" / "mlflow").as_uri())
    assert [call for call in fake.calls if call[0] == "run"] == [("run", "experiment tracked", "seed0")]
    assert ("param", "data.batch_size", "64") in fake.calls
    assert [call for call in fake.calls if call[0] == "batch"] == 2 * [("batch", "abc", ("train/loss", 0.5, 3))]
    assert fake.calls[-1] == ("end", "abc")


def test_wandb(tmp_path: Path) -> None:
    recipe, run = recipe_in(tmp_path)
    fake = Fake()
    tracker = Wandb(run, recipe, 0, fake)
    tracker.scalars(found().scalars(), 7)
    tracker.histograms(found().histograms(), 7)
    tracker.close()
    number = known_id(run, "wandb", lambda: "another")
    assert fake.calls[:2] == [("init", "tracked", "seed0", number, "allow"), ("step", "step")]
    assert fake.calls[2][1]["test/all/auc"] == 0.75
    assert fake.calls[3] == (
        "log",
        {"test/gate": "4 values in 20 bins", "test/attention/s1": "3 values in 20 bins", "step": 7},
    )
    assert fake.calls[4] == ("finish",)


class Failing:
    def __init__(self, *_: Any) -> None:
        self.calls = 0

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.calls += 1
        raise OSError("the disk is full")

    def histograms(self, counts: Mapping[str, Sequence[int]], step: int) -> None:
        raise AssertionError("left out by now")

    def close(self) -> None:
        raise AssertionError("left out by now")


def test_a_tracker_that_fails_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = recipe_in(tmp_path, track=["mlflow", "wandb"])

    def missing(*_: Any) -> Any:
        raise ModuleNotFoundError("no wandb")

    monkeypatch.setattr(tracking, "TRACKERS", {"tensorboard": Failing, "mlflow": Failing, "wandb": missing})
    together = Tracking()
    together.open(recipe, run, 0)
    together.scalars({"train/loss": 1.0}, 1)
    together.evaluation(found())
    together.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "wandb is not installed" in lines[0]
    assert lines[1].endswith("tensorboard failed (the disk is full); this run goes on without it")


def test_real_mlflow_keeps_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed; the extra mlflow brings it")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe, run = recipe_in(tmp_path)
    for step in (3, 6):
        tracker = Mlflow(run, recipe, 0)
        tracker.scalars(found().scalars(), step)
        tracker.close()
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "runs" / "mlflow").as_uri())
    number = known_id(run, "mlflow", lambda: "another")
    assert [(point.step, point.value) for point in client.get_metric_history(number, "test/all/auc")] == [
        (3, 0.75),
        (6, 0.75),
    ]
    assert client.get_run(number).data.params["data.batch_size"] == "64"


def test_a_training_fills_tensorboard(tmp_path: Path) -> None:
    """Evaluations on the way and at the end, by slice, with gate and attention."""
    write_small_log(tmp_path, rows=384)
    best = {"split": "test", "metric": "auc", "every": 6}
    recipe = small_recipe(tmp_path, name="curves", checkpoint={"best": best})
    assert start(recipe) == 0
    events = EventAccumulator(str(recipe.run / "tensorboard")).Reload()
    scalars, histograms = events.Tags()["scalars"], events.Tags()["histograms"]
    for name in (
        "train/loss",
        "test/all/auc",
        "test/tail/ne",
        "test/head/gauc",
        "test/attention/s1",
        "test/gate/100-999",
    ):
        assert name in scalars, name
    assert {"test/gate", "test/attention/s12"} <= set(histograms)
    steps = [event.step for event in events.Scalars("test/all/auc")]
    assert steps[:2] == [6, 12]
    assert len(steps) == 3  # the best one is evaluated again at the end
    lines = tracking.read_evaluations(recipe.run / "evaluations.jsonl")
    assert [line["step"] for line in lines] == [6, 12]
    assert lines[0]["metrics"]["all"]["auc"] == pytest.approx(events.Scalars("test/all/auc")[0].value)


def test_flat_recipes() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": (1, 2)}) == {"a.b": "1", "a.c": "{}", "d": "(1, 2)"}
