"""A whole run in a world whose next item is certain every other time, and what a run refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.generative.evaluation import metrics_at
from benchmarks.generative.result import Settings, load_ranks
from benchmarks.generative.run import evaluate_catalog
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from tests.benchmarks.generative_log import write_events

ITEMS, USERS = 24, 150
SETTINGS = Settings(epochs=7, batch_items=32, beam=24)
TEST_TIME = 1_000_000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users like items by twos: any item of an even number, then the one that always follows it; the last is in test.

    As many users again have longer histories and no test event.
    """
    folder = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    train, test = [], []
    for user in range(1, 2 * USERS + 1):
        twos = random.integers(2, 5) if user <= USERS else 5
        first = random.integers(0, ITEMS // 2, size=twos)
        second = (first + 5) % (ITEMS // 2)
        liked = np.stack([2 * first, 2 * second + 1], axis=1).ravel() + 1
        rows = [(user, int(item), 1000 * place + user) for place, item in enumerate(liked)]
        if user <= USERS:
            test.append((user, rows.pop()[1], TEST_TIME + user))
        train += rows
    write_events(folder, {"train": train, "test": test})
    save_catalog(folder / "catalog", np.arange(ITEMS))
    return folder


def save_catalog(path: Path, sid_I: np.ndarray, weights_NL: np.ndarray | None = None) -> None:
    codes_NL = np.stack([sid_I // 8, sid_I // 2 % 4, sid_I % 2], axis=1)
    Catalog(np.arange(1, len(sid_I) + 1), codes_NL, (3, 4, 2), weights_NL).save(path)


def figures(out: Path) -> dict[str, dict[str, float]]:
    return json.loads(out.read_text())["metrics"]


def test_a_certain_next_item_is_found_and_popularity_is_not_enough(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "result.json"
    evaluate_catalog(world / "catalog", world, out, SETTINGS)
    metrics = figures(out)
    assert metrics["item"]["recall@5"] > 0.95
    assert metrics["item"] == metrics["sid"]  # no SID is shared
    assert metrics["popularity_item"]["recall@5"] < 0.5
    facts = json.loads(out.read_text())
    assert facts["test"]["users"] == USERS
    assert facts["test"]["users_without_history"] == 0
    ranks = load_ranks(out, facts["settings_hash"])
    assert ranks is not None
    assert ranks.user_U.tolist() == list(range(1, USERS + 1)), "those with a test event"
    assert metrics_at(ranks.rank_U, 1 / ranks.group_U, SETTINGS.beam) == metrics["item"]


def test_items_that_share_a_sid_share_the_credit(world: Path, tmp_path: Path) -> None:
    save_catalog(tmp_path / "catalog", np.arange(ITEMS) // 2)  # pairs of neighbours
    out = tmp_path / "result.json"
    evaluate_catalog(tmp_path / "catalog", world, out, replace(SETTINGS, epochs=2))
    metrics = figures(out)
    assert metrics["sid"]["recall@5"] > 0
    for name, value in metrics["sid"].items():
        assert metrics["item"][name] == pytest.approx(value / 2)
    ranks = load_ranks(out, json.loads(out.read_text())["settings_hash"])
    assert ranks is not None
    assert set(ranks.group_U) == {2}


def test_a_finished_run_is_not_computed_again_and_another_one_is(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, quick = tmp_path / "result.json", replace(SETTINGS, epochs=1)
    evaluate_catalog(world / "catalog", world, out, quick)
    first = out.read_text()
    capsys.readouterr()
    evaluate_catalog(world / "catalog", world, out, quick)
    assert capsys.readouterr().out == f"{out}: already holds this run\n", "it ends before it trains"
    assert out.read_text() == first
    evaluate_catalog(world / "catalog", world, out, replace(quick, seed=1))
    assert figures(out) != json.loads(first)["metrics"]
    evaluate_catalog(world / "catalog", world, out, quick)
    assert figures(out) == json.loads(first)["metrics"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.json", "result.npz"]


def test_token_weights_change_the_training_only_where_asked_for(world: Path, tmp_path: Path) -> None:
    quick, last_only = replace(SETTINGS, epochs=2), np.tile(np.array([0, 0, 1], np.float32), (ITEMS, 1))
    save_catalog(tmp_path / "weighted", np.arange(ITEMS), last_only)
    plain, unasked, asked = (tmp_path / f"{name}.json" for name in ("plain", "unasked", "asked"))
    evaluate_catalog(world / "catalog", world, plain, quick)
    evaluate_catalog(tmp_path / "weighted", world, unasked, quick)
    evaluate_catalog(tmp_path / "weighted", world, asked, replace(quick, token_weights=True))
    assert figures(unasked) == figures(plain)
    assert figures(asked)["item"]["recall@5"] < figures(plain)["item"]["recall@5"]  # first levels were never learned


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "--epochs: expected at least 1, got 0"),
        ({"batch_items": 5}, "--batch-items: expected at least the history's 20, got 5"),
        ({"validation_share": 1.0}, "--validation-share"),
        ({"protocol": "leave-one-out"}, "the tokenizer's artifact"),
    ],
)
def test_settings_are_checked_before_training(
    world: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        evaluate_catalog(world / "catalog", world, tmp_path / "out.json", replace(SETTINGS, **change))
    assert not list(tmp_path.iterdir())


def test_items_without_a_sid_are_refused(world: Path, tmp_path: Path) -> None:
    save_catalog(tmp_path / "catalog", np.arange(ITEMS - 2))
    with pytest.raises(ContractError, match="a SID for every item that somebody liked, got none for 2 items"):
        evaluate_catalog(tmp_path / "catalog", world, tmp_path / "out.json", SETTINGS)


def test_a_result_is_a_json(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"--out: expected a file name that ends in \.json, got out\.npz"):
        evaluate_catalog(world / "catalog", world, tmp_path / "out.npz", SETTINGS)


def test_a_file_that_is_no_result_is_not_overwritten(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    out.write_text('{"mine": 1}\n')
    with pytest.raises(ContractError, match="a result of this benchmark"):
        evaluate_catalog(world / "catalog", world, out, SETTINGS)
    assert out.read_text() == '{"mine": 1}\n'
