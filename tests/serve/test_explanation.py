"""`sidrec score --explain` gives the trained model's own gate, weights of granularities and part of the alignment."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sidrec import cli
from sidrec.checkpoint.checkpoint_store import chosen_checkpoint
from sidrec.checkpoint.state import load_model
from sidrec.errors import ContractError
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import joined_ranks
from sidrec.serve.bundle import Bundle, Explained
from sidrec.serve.scorer import Model, Scorer
from sidrec.train.assembly import build_training, open_dataset, open_loader
from sidrec.train.run_directory import RunDirectory
from tests.serve.conftest import World
from tests.serve.test_scorer import ranked
from tests.train.refusals import recipe_of, start

OTHERS = {
    "kind": "sid_coord",
    "fusion": {"kind": "hid_query"},
    "gate": {"kind": "shrinkage"},
    "alignment": {"kind": "match_stats"},
}
"""An item kind whose weights differ between items of one SID, and whose gate reads updates."""


class Trained(NamedTuple):
    """What a trained model says of its test rows: weights of the target's granularities, and its gate."""

    weight_NG: np.ndarray
    gate_N: np.ndarray


def trained(run: Path) -> Trained:
    """By the model of the newest checkpoint, with its tables, batch by batch."""
    directory, weights, gates, rows = RunDirectory(run), [], [], []
    recipe = directory.recipe()
    with joined_ranks() as ranks, torch.no_grad():
        data = open_dataset(recipe, ranks)
        training = build_training(recipe, data, ranks)
        load_model(chosen_checkpoint(directory.checkpoints, None, ranks), training.model, None, ranks)
        ranker = training.model.module.eval()
        assert isinstance(ranker, Ranker)
        fusion = ranker.fusion
        assert fusion is not None
        loader = open_loader(recipe, data, "test", shuffle=False, ranks=ranks)
        for packed in loader.packed_batches(0):
            batch = packed.to(torch.device("cpu"))
            of_bags: list[torch.Tensor] = []
            with fusion.watch(lambda *of, found=of_bags: found.append(fusion.weights(*of))):
                ranker.score(batch)
            weights.append(of_bags[0][batch.target_B])
            gates.append(ranker.gate_values(batch))
            rows.append(torch.where(batch.weight_B > 0, batch.row_B, -1))
        loader.close()
    row_N = torch.cat(rows).numpy()
    order_N = np.argsort(row_N)[(row_N < 0).sum() :]
    return Trained(torch.cat(weights).numpy()[order_N], torch.cat(gates).numpy()[order_N])


@pytest.fixture(scope="module")
def others(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same log, trained and exported with an item kind of other parts."""
    folder = tmp_path_factory.mktemp("others")
    model = {"embedding_dim": 8, "context": ["user_id", "cat_a"], "item": OTHERS}
    recipe = recipe_of(world.folder, name="others", train={"epochs": 1, "runs": str(folder / "runs")}, model=model)
    assert start(recipe) == 0
    run = folder / "runs/others/seed0"
    assert cli.main(["export", str(run), str(folder / "bundle"), "--store", "f32"]) == 0
    found = pq.read_table(run / "predictions_test.parquet")["probability"].to_numpy()
    return world._replace(run=run, bundle=folder / "bundle", probability_N=found)


@pytest.mark.parametrize("which", ["world", "others"])
def test_each_row_is_explained_as_the_trained_model_computes_it(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    world: World = request.getfixturevalue(which)
    assert cli.main(["score", str(world.bundle), str(world.rows), str(tmp_path / "out"), "--explain"]) == 0
    table = pq.read_table(tmp_path / "out/part-00000.parquet")
    expected, about = trained(world.run), Bundle(world.bundle).description.explained
    assert about.outputs == ("gate", "alignment")
    gate_N = table["gate"].to_numpy()
    np.testing.assert_allclose(gate_N, expected.gate_N, atol=1e-5)
    weight_NG = np.stack([table[name].to_numpy() for name in about.columns[2:]], axis=1)
    without_N = np.isnan(gate_N)
    assert table["gate"].null_count == table[about.columns[-1]].null_count == without_N.sum() > 0
    np.testing.assert_allclose(weight_NG[~without_N], expected.weight_NG[~without_N], atol=5e-4)
    assert weight_NG[~without_N].std(axis=0).min() > 0
    alignment_N = table["alignment"].to_numpy()
    history_N = np.array([len(of) for of in pq.read_table(world.rows)["history"].to_pylist()])
    assert np.abs(alignment_N[(history_N == 0) | without_N]).max() <= 1e-6
    assert np.abs(alignment_N).max() > 1e-4


def test_requests_are_explained_as_files_are(world: World, tmp_path: Path) -> None:
    assert cli.main(["score", str(world.bundle), str(world.rows), str(tmp_path / "out"), "--explain"]) == 0
    table, scorer = pq.read_table(tmp_path / "out/part-00000.parquet"), Scorer(world.bundle)
    for place, row in enumerate(pq.read_table(world.rows).to_pylist()[:20]):
        found = ranked(scorer, row, explain=True).explained_C
        assert tuple(found) == scorer.model.description.explained.columns
        for name, value_C in found.items():
            expected = table[name][place].as_py()
            assert value_C[0] == pytest.approx(np.nan if expected is None else expected, abs=1e-6, nan_ok=True)
    assert not ranked(scorer, row).explained_C


def test_a_version_that_explains_nothing_is_named(world: World) -> None:
    bundle = Bundle(world.bundle)
    bundle.description = replace(bundle.description, explained=Explained())
    with pytest.raises(
        ContractError, match=r"versions/[0-9a-f]+: expected a version with a gate, an alignment or weights"
    ):
        Model(bundle, threads=1).explain(np.ones(1, dtype=np.int64), {})
