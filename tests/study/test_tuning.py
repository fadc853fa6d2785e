"""Tuning: equal budgets, proposals that depend on recorded trials alone, pruning, edges, and what final runs get."""

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from sidrec.cli import main
from sidrec.config import ConfigError
from sidrec.errors import InstallationError
from sidrec.study.definition import Study, load_study
from sidrec.study.jobs import Run, study_runs, variant_recipe
from sidrec.study.proposals import Trial, edges, is_pruned, load_optuna, next_points, values_of
from sidrec.study.results import RunResult, run_results
from sidrec.study.runner import LATE, Record
from sidrec.study.search import TrialResult, load_best, search, trial_results, with_best
from sidrec.study.tuning import Choices, Range, Tuning
from tests import fake_trainer

RESULTS = Path("results")
LR, HID_INIT = "optimizer.tables.lr", "model.hid_init"
HID: dict[str, Any] = {"model": {"item": {"kind": "hid"}}}
SID: dict[str, Any] = {"model": {"item": {"kind": "sid"}}}
TUNING: dict[str, Any] = {
    "trials": 6,
    "space": {LR: {"low": 0.01, "high": 1.0, "log": True}, HID_INIT: {"choices": [None, 0.0, 0.1]}},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"name": "world", "data": {"path": "data", "catalog": "catalog"}, "optimizer": {"tables": {"kind": "sgd"}}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))


def _study(variants: dict[str, Any] | None = None, **tuning: Any) -> Study:
    study = {
        "datasets": {"world": "recipe.yaml"},
        "variants": variants or {"hid": HID, "sid": SID},
        "tuning": {**TUNING, **tuning},
    }
    Path("small.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return load_study(Path("small.yaml"))


def _lr(recipe: dict[str, Any]) -> float:
    return float(recipe["optimizer"]["tables"]["lr"])


def _quality(recipe: dict[str, Any]) -> float:
    """Best at a learning rate of .1; the seed adds noise."""
    return 0.9 - (_lr(recipe) - 0.1) ** 2 - 0.001 * recipe["seed"]


class FakeTrainer:
    """Trains at once. quality: of a recipe. backwards: the last run ends first. stop_after: runs until it is stopped.

    fails: recipe -> the message of a failure, or None.
    """

    def __init__(
        self,
        quality: Callable[[dict[str, Any]], float] = _quality,
        backwards: bool = False,
        stop_after: int = 10_000,
        fails: Callable[[dict[str, Any]], str | None] = lambda recipe: None,
    ) -> None:
        self.quality, self.backwards, self.stop_after, self.fails = quality, backwards, stop_after, fails
        self.trained: list[Run] = []

    def __call__(self, runs: Sequence[Run], record: Record) -> list[tuple[Run, str]]:
        failed = []
        for run in reversed(runs) if self.backwards else runs:
            if len(self.trained) == self.stop_after:
                raise KeyboardInterrupt
            self.trained.append(run)
            if message := self.fails(run.recipe):
                failed.append((run, message))
            else:
                value = self.quality(run.recipe)
                metrics = {run.recipe["evaluate"]["splits"][0]: {"all": {"gauc": value, "ne": value}}}
                facts = {"metrics": metrics, "conditions": {"commit": "abc"}, "finished": "now", "cpu_seconds": 1.5}
                record(run, cast(RunResult, facts))
        return failed


def _rows(study: Study) -> dict[tuple[str, int, int], TrialResult]:
    rows = trial_results(RESULTS, study).read().values()
    return {(row["variant"], row["trial"], row["run"]): row for row in rows}


def test_every_variant_gets_the_same_number_of_trials_in_turns() -> None:
    study, trainer = _study(runs=[0, 1], pruner="none"), FakeTrainer()
    assert search(study, RESULTS, trainer) == []
    assert sorted(_rows(study)) == [
        (name, trial, run) for name in ("hid", "sid") for trial in range(6) for run in (0, 1)
    ]
    variants = [run.variant.split("@")[0] for run in trainer.trained]
    assert variants[:8] == ["hid"] * 4 + ["sid"] * 4  # run 0 of the random trials, then run 1, then batches of two
    assert variants[16:20] == ["hid"] * 2 + ["sid"] * 2
    found = load_best(study, RESULTS)["searches"]["world"]
    assert {name: (of["trials"], of["trained"], of["cpu_seconds"]) for name, of in found.items()} == {
        "hid": (6, 12, 18.0),
        "sid": (6, 12, 18.0),
    }


def test_trials_are_measured_on_validation() -> None:
    study, trainer = _study(), FakeTrainer()
    search(study, RESULTS, trainer)
    assert {run.checked().evaluate.splits for run in trainer.trained} == {("validation",)}
    assert {run.checked().seed for run in trainer.trained} == {0}


def test_random_trials_are_the_same_points_for_all_variants_in_the_keys_that_they_use() -> None:
    study = _study()
    search(study, RESULTS, FakeTrainer())
    rows = _rows(study)
    for trial in range(4):
        hid, sid = rows["hid", trial, 0]["values"], rows["sid", trial, 0]["values"]
        assert set(hid) == {LR, HID_INIT}
        assert sid == {LR: hid[LR]}
    left_out = {name: found["left_out"] for name, found in load_best(study, RESULTS)["searches"]["world"].items()}
    assert left_out["hid"] == {}
    assert list(left_out["sid"]) == [HID_INIT]
    assert "sid" in left_out["sid"][HID_INIT]


@pytest.mark.parametrize("stop_after", [0, 3, 13])
def test_an_interrupted_search_ends_as_an_uninterrupted_one(stop_after: int) -> None:
    study = _study(runs=[0, 1])
    search(study, Path("whole"), FakeTrainer())
    stopped, resumed = FakeTrainer(stop_after=stop_after), FakeTrainer()
    with pytest.raises(KeyboardInterrupt):
        search(study, RESULTS, stopped)
    search(study, RESULTS, resumed)
    assert load_best(study, RESULTS) == load_best(study, Path("whole"))
    whole = trial_results(Path("whole"), study).read()
    assert trial_results(RESULTS, study).read().keys() == whole.keys()
    assert len(stopped.trained) + len(resumed.trained) == len(whole)


def test_results_do_not_depend_on_the_order_in_which_runs_end() -> None:
    study = _study(runs=[0, 1])
    search(study, RESULTS, FakeTrainer())
    search(study, Path("backwards"), FakeTrainer(backwards=True))
    assert load_best(study, RESULTS) == load_best(study, Path("backwards"))


def test_proposals_after_the_random_ones_are_better() -> None:
    study = _study({"sid": SID}, trials=16, space={LR: {"low": 0.0001, "high": 10, "log": True}})
    search(study, RESULTS, FakeTrainer(quality=lambda recipe: -abs(math.log(_lr(recipe) / 0.02))))
    values = [_rows(study)["sid", trial, 0]["value"] or 0.0 for trial in range(16)]
    assert statistics.median(values[8:]) > statistics.median(values[:4])
    assert max(values) > -0.3  # within a third of .02, in a space of five decades
    found = load_best(study, RESULTS)["searches"]["world"]["sid"]
    assert found["value"] == max(values) == values[found["trial"]]
    assert found["curve"] == [max(values[: end + 1]) for end in range(16)]


def test_a_larger_budget_keeps_the_trials_that_are_there() -> None:
    search(_study(trials=5), RESULTS, FakeTrainer())
    more = FakeTrainer()
    search(_study(trials=8), RESULTS, more)
    search(_study(trials=8), Path("whole"), FakeTrainer())
    assert len(more.trained) == 2 * 3
    assert load_best(_study(trials=8), RESULTS) == load_best(_study(trials=8), Path("whole"))


def test_the_same_values_are_not_trained_twice() -> None:
    study, trainer = (
        _study({"hid": HID}, space={HID_INIT: {"choices": [None, 0.0]}}),
        FakeTrainer(quality=lambda _: 0.7),
    )
    search(study, RESULTS, trainer)
    assert len(trainer.trained) == 2
    assert load_best(study, RESULTS)["searches"]["world"]["hid"]["trials"] == 6


def test_lower_is_better_for_normalised_entropy() -> None:
    study = _study(metric="ne")
    search(study, RESULTS, FakeTrainer())
    values = [row["value"] for (variant, _, _), row in _rows(study).items() if variant == "sid"]
    assert load_best(study, RESULTS)["searches"]["world"]["sid"]["value"] == min(value or 0.0 for value in values)


# Pruning, failures.


def _trials(*values: tuple[float | None, ...]) -> list[Trial]:
    return [Trial(number, {}, of_trial) for number, of_trial in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "others", "pruned"),
    [
        # median of the others .74, deviations .04 .01 .01 .06: median .025, so the limit is .715
        ((0.714,), [(0.70,), (0.73,), (0.75,), (0.80,)], True),
        ((0.716,), [(0.70,), (0.73,), (0.75,), (0.80,)], False),
        ((0.1,), [(0.70,), (0.73,), (0.75,)], False),  # too few others
        ((0.1,), [(0.70,), (0.73,), (0.75,), (None,)], False),  # a diverged one does not count
        ((0.60, 0.60), [(0.70, 0.70), (0.73, 0.70), (0.75, 0.74), (0.80,), (0.80, 0.70)], True),
        ((0.60, 0.60, 0.60), [(0.70,) * 3] * 4, False),  # it has all its runs
        ((0.9, None), [], True),
    ],
)
def test_a_trial_that_is_clearly_worse_than_the_median_is_pruned(
    values: tuple[float | None, ...], others: list[tuple[float | None, ...]], pruned: bool
) -> None:
    tuning = Tuning(runs=(0, 1, 2), space={LR: Range(low=0.1, high=1)})
    assert is_pruned(tuning, Trial(9, {}, values), _trials(*others)) is pruned
    if None not in values:
        never = Tuning(runs=(0, 1, 2), pruner="none", space=tuning.space)
        assert not is_pruned(never, Trial(9, {}, values), _trials(*others))


def test_a_pruned_trial_gets_no_further_run() -> None:
    def quality(recipe: dict[str, Any]) -> float:
        return 0.2 if _lr(recipe) > 0.5 else 0.8 - _lr(recipe) / 100

    study = _study(runs=[0, 1, 2], trials=12, random=12)
    search(study, RESULTS, FakeTrainer(quality))
    rows = _rows(study)
    runs_of = {trial: [run for name, number, run in rows if name == "sid" and number == trial] for trial in range(12)}
    bad = [trial for trial in range(12) if rows["sid", trial, 0]["value"] == 0.2]
    assert bad
    assert all(runs_of[trial] == [0] for trial in bad)
    assert [0, 1, 2] in runs_of.values()
    assert load_best(study, RESULTS)["searches"]["world"]["sid"]["pruned"] >= len(bad)


def test_a_diverged_trial_is_recorded_and_is_never_the_best() -> None:
    message = "exit status 1\nsidrec: error: step 3: expected a finite loss and finite gradients, got .."
    study = _study(trials=8)
    trainer = FakeTrainer(fails=lambda recipe: message if _lr(recipe) > 0.2 else None)
    assert search(study, RESULTS, trainer) == []
    diverged = [row for row in _rows(study).values() if row["value"] is None]
    assert diverged
    assert all(_lr(row["recipe"]) > 0.2 for row in diverged)
    found = load_best(study, RESULTS)["searches"]["world"]
    assert sum(of["diverged"] for of in found.values()) == len(diverged)
    assert all(of["values"][LR] <= 0.2 for of in found.values())


def test_a_failed_run_stops_its_variant_alone_and_is_tried_again() -> None:
    study = _study()
    broken = FakeTrainer(fails=lambda recipe: "disk full" if recipe["name"].startswith("hid@") else None)
    failed = search(study, RESULTS, broken)
    assert [run.variant.split("@")[0] for run in failed] == ["hid"] * 4
    assert list(load_best(study, RESULTS)["tuned"]["world"]) == ["sid"]
    mended = FakeTrainer()
    assert search(study, RESULTS, mended) == []
    assert len(mended.trained) == 6
    search(study, Path("whole"), FakeTrainer())
    assert load_best(study, RESULTS) == load_best(study, Path("whole"))


def test_a_search_without_time_left_stops_and_goes_on_later() -> None:
    study = _study()
    hurried = FakeTrainer(fails=lambda recipe: LATE if recipe["name"].endswith(("-1", "-2", "-3")) else None)
    assert search(study, RESULTS, hurried) == []
    assert sorted(_rows(study)) == [("hid", 0, 0), ("sid", 0, 0)]
    assert len(hurried.trained) == 8
    search(study, RESULTS, FakeTrainer())
    search(study, Path("whole"), FakeTrainer())
    assert load_best(study, RESULTS) == load_best(study, Path("whole"))


# The space.


@pytest.mark.parametrize(
    ("key", "axis", "value", "end"),
    [
        (LR, Range(low=0.01, high=1, log=True), 0.0125, "low"),  # ln 1.25 / ln 100 = .048
        (LR, Range(low=0.01, high=1, log=True), 0.0127, None),  # .052
        (LR, Range(low=0.01, high=1, log=True), 0.8, "high"),  # 1 - .048
        (LR, Range(low=0, high=10), 0.4, "low"),
        (LR, Range(low=0, high=10), 9.4, None),
        (LR, Choices(choices=(0.1, 0.2, 0.4)), 2, "high"),
        (LR, Choices(choices=(0.1, 0.4, 0.2)), 2, None),
        (LR, Choices(choices=(0.1, 0.2)), 1, None),  # every one of two would be an edge
        (LR, Choices(choices=(None, 0.1, 0.2, 0.3)), 0, None),
    ],
)
def test_a_best_value_at_the_edge_of_the_space_is_named(key: str, axis: Any, value: float, end: str | None) -> None:
    found = edges({key: axis}, {key: value})
    assert [edge["end"] for edge in found] == ([] if end is None else [end])


def test_an_edge_is_recorded_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    study = _study({"sid": SID}, space={LR: {"choices": [0.1, 0.2, 0.3]}})
    search(study, RESULTS, FakeTrainer(quality=_lr))
    found = load_best(study, RESULTS)["searches"]["world"]["sid"]
    assert found["edges"] == [{"key": LR, "end": "high", "value": 0.3, "limit": 0.3}]
    assert f"world/sid: the best {LR}, 0.3, is at the high edge of the space" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"optimizer.tabels.lr": {"low": 0.1, "high": 1}}}, r"got 'tabels'.*tables"),
        ({"space": {"model.item.granularites": {"choices": [["s1"], ["s2"]]}}}, "granularities"),
        ({"space": {"optimizer.hid.lr": {"low": 0.1, "high": 1}}}, "the recipe has no optimizer.hid"),
        ({"space": {LR: {"low": -1, "high": 1}}}, f"that some variant can use, got {LR}: -1.0 is refused"),
        ({"space": {"optimizer.tables": {"choices": [1, 2]}, LR: {"low": 0.1, "high": 1}}}, "inside optimizer.tables"),
        ({"space": {LR: {"low": 1, "high": 0.1}}}, "expected low below high, got 1 and 0.1"),
        ({"space": {LR: {"low": 0, "high": 0.1, "log": True}}}, "expected low above 0 with log"),
        ({"space": {LR: {"low": 0.5, "high": 2, "integer": True}}}, "expected whole numbers"),
        ({"space": {LR: {"choices": [0.1, 0.1]}}}, "expected every choice once, got 0.1 twice"),
        ({"space": {}}, "at least 1 item"),
        ({"split": "test"}, "expected a split other than test"),
        ({"split": "train"}, "expected a split that is not trained on"),
        ({"runs": [0, 0]}, "expected every run number once"),
        ({"trails": 3}, "Unexpected keyword argument"),
    ],
)
def test_a_space_with_mistakes_is_refused_before_training(changes: dict[str, Any], message: str) -> None:
    trainer = FakeTrainer()
    with pytest.raises(ConfigError, match=message):
        search(_study(**changes), RESULTS, trainer)
    assert trainer.trained == []


def test_random_points_are_spread_along_each_key() -> None:
    space: dict[str, Range | Choices] = {
        LR: Range(low=0.01, high=100, log=True),
        "train.epochs": Range(low=1, high=4, integer=True),
        HID_INIT: Choices(choices=(None, 0.0)),
    }
    points = next_points(Tuning(space=space), space, [])
    assert sorted(math.floor(math.log10(point[LR])) for point in points) == [-2, -1, 0, 1]
    assert sorted(point["train.epochs"] for point in points) == [1, 2, 3, 4]
    assert sorted(point[HID_INIT] for point in points) == [0, 0, 1, 1]


def test_sections_may_be_chosen_and_integers_stay_integers() -> None:
    tuning = Tuning(
        space={
            "model.item.gate": Choices(choices=({"kind": "mean"}, {"kind": "sum"})),
            "train.epochs": Range(low=1, high=3, integer=True),
        }
    )
    for point in next_points(tuning, tuning.space, []):
        values = values_of(tuning.space, point)
        assert values["model.item.gate"] in ({"kind": "mean"}, {"kind": "sum"})
        assert values["train.epochs"] in (1, 2, 3)
        assert isinstance(values["train.epochs"], int)


# Final runs.


def test_final_runs_get_the_best_values_and_keep_the_rest_of_their_item() -> None:
    item = {"kind": "sid_coord", "gate": {"kind": "stats", "hidden": 8}}
    space = {"model.item.gate.output_bias": {"low": 0.5, "high": 2}, "data.batch_size": {"choices": [512, 1024, 2048]}}
    study = _study({"sid_coord": {"model": {"item": item}}}, space=space)
    search(study, RESULTS, FakeTrainer(quality=lambda recipe: recipe["data"]["batch_size"] / 10_000))
    recipe = variant_recipe(with_best(study, RESULTS), "world", "sid_coord")
    gate = recipe["model"]["item"]["gate"]
    assert gate["hidden"] == 8
    assert 0.5 <= gate["output_bias"] <= 2
    assert recipe["data"] == {"path": "data", "catalog": "catalog", "batch_size": 2048}
    assert recipe["optimizer"] == {"tables": {"kind": "sgd"}}
    assert {run.checked().data.batch_size for run in study_runs(with_best(study, RESULTS))} == {2048}


def test_a_section_that_the_recipe_leaves_out_keeps_its_kind() -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump({"name": "world", "data": {"path": "data", "catalog": "catalog"}}))
    study = _study({"sid": SID}, trials=1, space={LR: TUNING["space"][LR]})
    search(study, RESULTS, FakeTrainer())
    tables = load_best(study, RESULTS)["tuned"]["world"]["sid"]["optimizer"]["tables"]
    assert tables["kind"] == "adagrad"
    assert set(tables) == {"kind", "lr"}


def test_final_runs_wait_for_every_variants_search() -> None:
    study = _study()
    with pytest.raises(ConfigError, match=r"expected the finished search of every variant.*world/hid, world/sid"):
        with_best(study, RESULTS)
    search(study, RESULTS, FakeTrainer(fails=lambda recipe: "full disk" if recipe["name"].startswith("sid") else None))
    with pytest.raises(ConfigError, match=r"got none for world/sid$"):
        with_best(study, RESULTS)
    search(study, RESULTS, FakeTrainer())
    assert with_best(study, RESULTS).tuned != {}
    for changed in (_study(trials=7), _study(space={LR: {"low": 0.1, "high": 0.2}})):
        with pytest.raises(ConfigError, match="world/hid, world/sid"):
            with_best(changed, RESULTS)


def test_the_command_searches_then_trains_the_final_runs_with_the_best_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [sys.executable, fake_trainer.__file__, "{recipe}", "{ranks}"]
    study = {
        "datasets": {"world": "recipe.yaml"},
        "variants": {"sid": SID},
        "runs": 1,
        "command": command,
        "tuning": {"trials": 2, "space": {LR: {"choices": [1.0, 2.0]}}},
    }
    Path("small.yaml").write_text(yaml.safe_dump(study))
    assert main(["study", "small.yaml", "--results", "results"]) == 2
    assert "expected the finished search of every variant" in capsys.readouterr().err
    assert main(["study", "small.yaml", "--results", "results", "--tune"]) == 0
    loaded = load_study(Path("small.yaml"))
    measured = {row["value"] for row in trial_results(RESULTS, loaded).read().values()}
    assert measured == {0.55, 0.6}  # .5 + lr / 20
    (final,) = run_results(RESULTS, loaded).read().values()
    assert final["recipe"]["optimizer"]["tables"]["lr"] == 2.0
    assert list(final["metrics"]) == ["test"]


def test_runs_of_earlier_searches_are_counted_as_exploratory() -> None:
    search(_study(), RESULTS, FakeTrainer())
    narrower = _study(space={LR: {"low": 0.05, "high": 0.2}})
    search(narrower, RESULTS, FakeTrainer())
    found = load_best(narrower, RESULTS)["searches"]["world"]["sid"]
    assert (found["trained"], found["exploratory"]) == (6, 6)


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InstallationError, match=r"pip install 'sidrec\[study\]'"):
        load_optuna()
