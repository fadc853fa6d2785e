"""A killed and resumed run ends as one that was not; evaluation repeats itself from the checkpoint alone."""

import json
import signal
from pathlib import Path

import pytest
import yaml

from sidrec import cli
from sidrec.config import Recipe, save
from sidrec.parallel.process_group import joined_ranks
from sidrec.train.run import train
from sidrec.train.trainer import Trainer
from tests.killed import watch
from tests.ranks import RankError, joined, run_on_ranks, status_of_a_fork
from tests.small_log import small_recipe, write_small_log


def losses(recipe: Recipe) -> list[tuple[int, float]]:
    lines = (recipe.run / "metrics.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


def uninterrupted(rank: int, world: int, recipe: Recipe) -> None:
    assert train(recipe, joined(rank, world)) == 0


def killed_with_a_checkpoint(rank: int, world: int, recipe: Recipe) -> None:
    """The rank is killed at the first file that it touches once a checkpoint is there."""
    watch("die", str(recipe.run / "checkpoints" / "step-*[0-9]"))
    train(recipe, joined(rank, world))


def continued(rank: int, world: int, recipe: Recipe) -> int:
    """Trains to the end; the step from which."""
    first: list[int] = []

    class Noting(Trainer):
        def train(self) -> int:
            first.append(self.position.step)
            return super().train()

    assert train(recipe, joined(rank, world), Noting) == 0
    return first[0]


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=1200)
    sections = {"train": {"epochs": 3, "log_every": 3}, "checkpoint": {"every": 7}}
    whole = small_recipe(tmp_path, name="whole", **sections)
    killed = small_recipe(tmp_path, name="killed", **sections, data={"workers": 1})
    run_on_ranks(2, uninterrupted, whole)

    with pytest.raises(RankError, match=f"[01]: -{signal.SIGKILL.value}"):
        run_on_ranks(2, killed_with_a_checkpoint, killed)
    assert not (killed.run / "metrics.json").exists(), "the run was over before it could be killed"

    assert min(run_on_ranks(2, continued, killed)) >= 7
    assert losses(killed) == losses(whole)
    assert (killed.run / "metrics.json").read_text() == (whole.run / "metrics.json").read_text()


def test_evaluate_reproduces_metrics_from_the_checkpoint_alone(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=600)
    recipe = small_recipe(tmp_path)
    with joined_ranks() as ranks:
        assert train(recipe, ranks) == 0
    metrics = recipe.run / "metrics.json"
    before = json.loads(metrics.read_text())
    for name in ("metrics.json", "predictions_test.parquet", "plan.json", "run.json", "metrics.jsonl"):
        (recipe.run / name).unlink()
    assert status_of_a_fork(["evaluate", str(recipe.run)]) == 0
    assert json.loads(metrics.read_text()) == before
    assert cli.main(["evaluate", str(recipe.run), "train"]) == 0
    assert set(json.loads(metrics.read_text())) == {"train", "test"}, "a further split joins those of before"


@pytest.mark.parametrize(
    ("kind", "unused"),
    [
        ("sid", {"model": {"hid_init": 0.1}, "optimizer": {"hid": {"kind": "sgd", "lr": 0.1}}}),
        ("gate_sid", {"model": {"history_pooling": {"kind": "target_attention"}}}),
    ],
)
def test_a_run_whose_recipe_has_keys_without_effect(
    kind: str, unused: dict[str, dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0.1.0 accepted and saved such keys. Its runs are evaluated and resumed, with a warning."""
    write_small_log(tmp_path, rows=300)
    recipe = small_recipe(tmp_path, model={"item": {"kind": kind}}, train={"epochs": 1})
    file, metrics = tmp_path / "recipe.yaml", recipe.run / "metrics.json"
    save(recipe, file)
    assert cli.main(["train", str(file)]) == 0
    before = json.loads(metrics.read_text())
    for path in (file, recipe.run / "config.yaml"):
        sections = yaml.safe_load(path.read_text())
        sections |= {name: {**sections[name], **keys} for name, keys in unused.items()}
        path.write_text(yaml.safe_dump(sections))
    capsys.readouterr()
    for command in (["train", str(file)], ["evaluate", str(recipe.run)]):
        metrics.unlink()
        assert cli.main(command) == 0
        warnings = capsys.readouterr().err
        for key in (f"{section}.{key}" for section, keys in unused.items() for key in keys):
            assert f"{key} has no effect and is ignored: expected none with item kind {kind}" in warnings
        assert json.loads(metrics.read_text()) == before
