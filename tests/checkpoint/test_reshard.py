"""Checkpoints of some plans and numbers of ranks, loaded by others: losses go on as if nothing had happened."""

from pathlib import Path

import pytest

from sidrec.checkpoint.state import load_model
from sidrec.config import Recipe
from sidrec.train.assembly import open_dataset
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.soak.reshard.matrix import TOLERANCE, Outcome, judge
from tests.soak.reshard.runs import (
    OPTIMIZERS,
    SAVED_AFTER,
    STEPS,
    Plan,
    Run,
    build_ranker,
    first_batches,
    load_runs,
    machines_of,
    save_runs,
)

SAVED = {1: ("column_wise",), 2: ("data_parallel", "row_wise")}
LOADED = {1: ("table_wise",), 2: ("grid_shard",), 4: ("row_wise",)}


def save(rank: int, world: int, recipe: Recipe, kinds: tuple[str, ...], folder: Path) -> list[Run]:
    machines_of(2, world)
    return save_runs(recipe, tuple(OPTIMIZERS), kinds, folder, joined(rank, world))


def load(rank: int, world: int, recipe: Recipe, saved: list[Run], folder: Path) -> tuple[list[Run], list[Run]]:
    """The runs that have loaded, and uninterrupted ones of the plans that they load with."""
    machines_of(2, world)
    ranks = joined(rank, world)
    whole = save_runs(recipe, tuple(OPTIMIZERS), LOADED[world], folder / "uninterrupted", ranks)
    return load_runs(recipe, saved, LOADED[world], folder, ranks), whole


def losses_with_new_optimizers(
    rank: int, world: int, recipe: Recipe, saved: list[Run], folder: Path
) -> dict[Plan, list[float]]:
    ranks = joined(rank, world)
    data = open_dataset(recipe, ranks)
    batches = first_batches(recipe, data, STEPS, ranks)[SAVED_AFTER:]
    losses = {}
    for run in saved:
        ranker = build_ranker(recipe, data, run.plan.optimizer, "table_wise", ranks)
        load_model(run.plan.checkpoint(folder), ranker.model, None, ranks)
        losses[run.plan] = ranker.train(batches)
    return losses


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Tables of five rows too, fewer than four ranks' shares of two; wide enough for four shards of columns."""
    return small_recipe(write_small_log(tmp_path_factory.mktemp("reshard")), model={"embedding_dim": 16})


@pytest.fixture(scope="module")
def saved(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Run]]:
    """A folder of checkpoints, and the runs that have saved them and gone on."""
    folder = tmp_path_factory.mktemp("checkpoints")
    runs = [run for world, kinds in SAVED.items() for run in run_on_ranks(world, save, recipe, kinds, folder)[0]]
    return folder, runs


@pytest.mark.parametrize("world", LOADED)
def test_losses_go_on(world: int, recipe: Recipe, saved: tuple[Path, list[Run]]) -> None:
    folder, runs = saved
    loaded, whole = run_on_ranks(world, load, recipe, runs, folder)[0]
    verdicts = judge([*runs, *whole], loaded)
    assert len(verdicts) == len(runs) * len(LOADED[world])
    assert not [found for found in verdicts if found.outcome is Outcome.WRONG]
    converted = {found.run.plan.optimizer for found in verdicts if found.outcome is Outcome.CONVERTED}
    assert converted == {"rowwise_adagrad"}


def test_the_tolerance_detects_a_lost_optimizer_state(recipe: Recipe, saved: tuple[Path, list[Run]]) -> None:
    folder, runs = saved
    losses = run_on_ranks(1, losses_with_new_optimizers, recipe, runs, folder)[0]
    for run in runs:
        lost = max(abs(loss - reference) for loss, reference in zip(losses[run.plan], run.losses, strict=True))
        assert lost > 100 * TOLERANCE
