"""The scorer gives the trained model's probabilities from source ids, and needs nothing of training."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sidrec.errors import ContractError
from sidrec.serve.bundle import Bundle
from sidrec.serve.calibration import probability
from sidrec.serve.golden import GoldenRows
from sidrec.serve.scorer import Model, Ranked, Scorer
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


def ranked(scorer: Scorer | Model, row: dict[str, Any], explain: bool = False) -> Ranked:
    return scorer.rank(
        row["user_id"],
        [row["item_id"]],
        row["history"],
        {name: [row[name]] for name in ("stat_exposures", "stat_clicks")},
        {name: row[name] for name in ("int_a", "int_b")},
        {} if row["cat_a"] is None else {"cat_a": row["cat_a"]},
        explain,
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


def test_numbers_are_inputs_bound_by_name(scorer: Scorer) -> None:
    """New statistics need no export, and the order of columns does not matter."""
    numbers: Any = ({"stat_exposures": [9, 700], "stat_clicks": [1, 99]}, {"int_a": 0.5, "int_b": -1.5})
    found = scorer.rank("user_id-1", ["item_id-1", "item_id-1"], (), *numbers)
    other_order: Any = [dict(reversed(columns.items())) for columns in numbers]
    again = scorer.rank("user_id-1", ["item_id-1", "item_id-1"], (), *other_order)
    assert list(other_order[0]) != list(numbers[0])
    assert again.score_C.tolist() == found.score_C.tolist()
    assert found.score_C[0] != found.score_C[1]


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


# Golden rows.


def copied(world: World, to: Path) -> Bundle:
    """A copy of the version in use, whose files may be changed."""
    shutil.copytree(Bundle(world.bundle).folder, to)
    return Bundle(to, check=False)


def test_a_version_holds_rows_with_the_trained_models_logits(world: World) -> None:
    golden = GoldenRows.of(Bundle(world.bundle))
    assert golden is not None
    assert len(golden.item_B) == 64
    distance = np.abs(probability(golden.logit_B)[:, None] - world.probability_N)
    assert distance.min(axis=1).max() <= 1e-6


def test_a_file_with_other_vectors_is_found_before_the_first_answer(world: World, tmp_path: Path) -> None:
    bundle = copied(world, tmp_path / "version")
    path = bundle.folder / "hid.f32.npy"
    np.save(path, 2 * np.load(path))
    with pytest.raises(ContractError, match=r"rows\.onnx, rows of golden\.npz: expected logits within 0\.0001 of the"):
        Scorer(bundle.folder, check=False)


@pytest.mark.parametrize("graph", ["rows.onnx", "request.onnx"])
@pytest.mark.parametrize("off", [1e-3, np.nan])
def test_an_onnxruntime_that_computes_otherwise_is_found(
    world: World, graph: str, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, added = Model.run, {graph: np.float32(off)}
    monkeypatch.setattr(Model, "run", lambda model, of, inputs: run(model, of, inputs) + added.get(of, np.float32(0)))
    with pytest.raises(ContractError, match=rf"{graph}, rows of golden\.npz: .* with onnxruntime [0-9]"):
        Scorer(world.bundle)


def test_damaged_golden_rows_and_versions_without(world: World, tmp_path: Path) -> None:
    bundle = copied(world, tmp_path / "version")
    (bundle.folder / "golden.npz").write_bytes(bytes((bundle.folder / "golden.npz").stat().st_size))
    with pytest.raises(ContractError, match=r"golden\.npz: expected golden rows, as sidrec export writes them"):
        Model(Bundle(bundle.folder, check=False), threads=1)
    files = {name: of for name, of in bundle.description.files.items() if name != "golden.npz"}
    bundle.description = replace(bundle.description, files=files)
    assert GoldenRows.of(bundle) is None
    assert Model(bundle, threads=1).version != Bundle(world.bundle).version
