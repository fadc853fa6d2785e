"""The scorer gives the trained model's probabilities from source ids, and needs nothing of training."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sidrec.errors import ContractError
from sidrec.serve.scorer import Ranked, Scorer
from tests.serve.conftest import World

LIGHT = """
import sys
for name in ("torch", "torchrec", "fbgemm_gpu", "pyarrow", "pandas", "pydantic", "tyro", "starlette", "psutil", "tqdm"):
    sys.modules[name] = None
from sidrec.serve.scorer import Scorer
scorer = Scorer(sys.argv[1])
ranked = scorer.rank("user_id-1", ["item_id-1", "item_id-2"], ["item_id-3"], {"stat_exposures": 1, "stat_clicks": 0},
                     {"int_a": 0.5, "int_b": 0.5}, {"cat_a": "cat_a-1"})
print(*ranked.score_C.tolist())
"""


@pytest.fixture(scope="module")
def scorer(world: World) -> Scorer:
    return Scorer(world.bundle)


def ranked(scorer: Scorer, row: dict[str, Any]) -> Ranked:
    return scorer.rank(
        row["user_id"],
        [row["item_id"]],
        row["history"],
        {name: [row[name]] for name in ("stat_exposures", "stat_clicks")},
        {name: row[name] for name in ("int_a", "int_b")},
        {} if row["cat_a"] is None else {"cat_a": row["cat_a"]},
    )


def test_each_row_as_the_trained_model_has_it(world: World, scorer: Scorer) -> None:
    rows = pq.read_table(world.rows).to_pylist()
    found = np.array([ranked(scorer, row).score_C[0] for row in rows])
    assert np.abs(found - world.probability_N).max() <= 1e-6


def test_candidates_together_are_as_each_alone(scorer: Scorer) -> None:
    numbers = {"stat_exposures": [5, 6, 7, 5], "stat_clicks": [1, 2, 3, 1]}
    dense: dict[str, Any] = {"int_a": 0.1, "int_b": [1, 2, 3, 1]}
    candidates, history = (
        ["item_id-7", "item_id-55", "item_id-9", "item_id-7"],
        ["item_id-1", "item_id-9", "item_id-52"],
    )
    whole = scorer.rank(
        "user_id-3", candidates, history, numbers, dense, {"cat_a": ["cat_a-1", "cat_a-2", "x", "cat_a-1"]}
    )
    for place, candidate in enumerate(candidates):
        alone = scorer.rank(
            "user_id-3",
            [candidate],
            history,
            {name: values[place] for name, values in numbers.items()},
            {"int_a": 0.1, "int_b": dense["int_b"][place]},
            {"cat_a": ["cat_a-1", "cat_a-2", "x", "cat_a-1"][place]},
        )
        assert abs(alone.score_C[0] - whole.score_C[place]) <= 1e-6
    assert whole.best().tolist() == np.argsort(-whole.score_C, kind="stable").tolist()
    assert whole.best(1).tolist() == whole.best().tolist()[:1]


def test_a_longer_history_loses_its_oldest_items(scorer: Scorer) -> None:
    history = [f"item_id-{number}" for number in range(1, 11)]
    arguments: Any = (["item_id-20"], history[-6:], {"stat_exposures": 1, "stat_clicks": 0}, {"int_a": 0, "int_b": 0})
    short = scorer.rank("user_id-1", *arguments)
    long = scorer.rank("user_id-1", arguments[0], history, *arguments[2:])
    assert long.score_C.tolist() == short.score_C.tolist()


def test_unknown_ids_are_scored_and_counted(world: World) -> None:
    scorer = Scorer(world.bundle)
    numbers: Any = ({"stat_exposures": 1, "stat_clicks": 0}, {"int_a": 0, "int_b": 0})
    found = scorer.rank("stranger", ["item_id-1", "new", "newer"], ["gone", "item_id-2"], *numbers)
    assert (found.unknown_candidates, found.unknown_history, found.unknown_user) == (2, 1, True)
    assert found.score_C[1] == found.score_C[2]
    known = scorer.rank("user_id-1", ["item_id-1"], (), *numbers)
    assert not known.unknown_user
    assert (scorer.counters.candidates, scorer.counters.unknown_candidates) == (4, 2)
    assert (scorer.counters.history, scorer.counters.unknown_history) == (2, 1)
    assert (scorer.counters.users, scorer.counters.unknown_users) == (2, 1)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_user_that_is_not_given_is_unknown(world: World, indexed: bool) -> None:
    scorer = Scorer(world.bundle)
    item: str | int = "item_id-1"
    stranger: str | int = "stranger"
    if not indexed:
        scorer.model.bundle.ids.clear()
        item, stranger = 1, 10**9
    numbers: Any = ({"stat_exposures": 1, "stat_clicks": 0}, {"int_a": 0, "int_b": 0})
    nobody = scorer.rank(None, [item], (), *numbers)
    assert nobody.unknown_user
    assert nobody.score_C.tolist() == scorer.rank(stranger, [item], (), *numbers).score_C.tolist()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"statistics": {"stat_exposures": 1}}, r"statistics: expected the columns .* missing \['stat_clicks'\]"),
        ({"dense": {"int_a": 1, "int_b": 1, "int_c": 1}}, r"dense: .* unknown \['int_c'\]"),
        ({"context": {"cat_b": 1}}, r"context: expected some of the columns \['cat_a'\], got \['cat_b'\]"),
        ({"dense": {"int_a": [1, 2, 3], "int_b": 1}}, r"dense, int_a: expected one number, or 2 of them, got"),
        ({"dense": {"int_a": float("nan"), "int_b": 1}}, "dense, int_a: expected finite numbers"),
        ({"context": {"cat_a": ["x", "y", "z"]}}, "context, cat_a: expected one id, or 2 of them, got 3"),
    ],
)
def test_wrong_columns_are_named(scorer: Scorer, change: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {
        "statistics": {"stat_exposures": 1, "stat_clicks": 0},
        "dense": {"int_a": 1, "int_b": 1},
        "context": {},
    }
    with pytest.raises(ContractError, match=sentence):
        scorer.rank("user_id-1", ["item_id-1", "item_id-2"], **(given | change))


def test_threads_get_the_same_scores(world: World, scorer: Scorer) -> None:
    rows = pq.read_table(world.rows).to_pylist()[:60]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda row: ranked(scorer, row).score_C[0], rows))
    assert found == [ranked(scorer, row).score_C[0] for row in rows]


def test_numpy_and_onnxruntime_are_enough(world: World, scorer: Scorer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(world.bundle)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    numbers: Any = ({"stat_exposures": 1, "stat_clicks": 0}, {"int_a": 0.5, "int_b": 0.5}, {"cat_a": "cat_a-1"})
    here = scorer.rank("user_id-1", ["item_id-1", "item_id-2"], ["item_id-3"], *numbers)
    assert [float(word) for word in done.stdout.split()] == here.score_C.tolist()
