"""Splits that ranks cannot share evenly: nobody waits for ever, every row counts once, and the world makes no odds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec.metrics.predictions import load_predictions
from sidrec.schema import LOG, ContractError, LogFile, load_manifest, save_manifest
from sidrec.train.run import train
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log

BATCH, LANES = 64, 4
WORLDS = (1, 2, 4)


@dataclass(frozen=True)
class Cut:
    """Rows of the files of each split, and rows without a label, from the first on, which go to quarantine."""

    train: tuple[int, ...]
    test: tuple[int, ...]
    bad: int = 0


CUTS = {
    "one row: every rank but one has none": Cut((1,), (2,)),
    "fewer rows than lanes, and than a step": Cut((3,), (50,)),
    "one row more than a step, and than two": Cut((65,), (129,)),
    "files of very different lengths, and empty ones first, between and last": Cut((1, 90, 2), (0, 70, 0, 1, 0)),
    "lanes of bad rows alone": Cut((100,), (40,), bad=20),
}


def write_uneven(folder: Path, cut: Cut) -> None:
    """A small log whose splits lie in files as `cut` says; those with rows have an empty row group between others."""
    write_small_log(folder, rows=400)
    log = folder / "data" / LOG
    manifest = load_manifest(log)
    splits = {split: cut_split(log, split, rows, cut.bad) for split, rows in (("train", cut.train), ("test", cut.test))}
    save_manifest(replace(manifest, splits=splits), log)


def cut_split(log: Path, split: str, rows: Sequence[int], bad: int) -> tuple[LogFile, ...]:
    whole = pq.read_table(log / split / "part-0.parquet")
    labels = pa.array([None] * bad + whole["label"].to_pylist()[bad:], pa.float32())
    whole = whole.set_column(0, whole.schema.field(0), labels)
    files, first = [], 0
    for number, length in enumerate(rows):
        part, name = whole.slice(first, length), f"{split}/part-{number}.parquet"
        with pq.ParquetWriter(log / name, whole.schema) as writer:
            for group in (part.slice(0, length // 2), part.slice(0, 0), part.slice(length // 2)) if length else ():
                writer.write_table(group)
        times = part["timestamp"].to_pylist() or [0]
        files.append(LogFile(name, length, times[0], times[-1]))
        first += length
    return tuple(files)


def train_all(rank: int, world: int, folder: Path) -> list[dict[str, Any]]:
    ranks, found = joined(rank, world), []
    for number, cut in enumerate(CUTS.values()):
        data = {"batch_size": BATCH, "lanes": LANES, "bad_rows": "quarantine" if cut.bad else "refuse"}
        sections = {"data": data, "train": {"epochs": 1, "log_every": 1, "runs": str(folder / f"runs-{world}")}}
        recipe = small_recipe(folder / f"cut-{number}", name=f"cut-{number}", **sections)
        train(recipe, ranks)
        if ranks.first:
            predictions = load_predictions(recipe.run / "predictions_test.parquet", "test")
            steps = [json.loads(line) for line in (recipe.run / "metrics.jsonl").read_text().splitlines()]
            found.append(
                {
                    "rows": predictions.row_N.tolist(),
                    "scores": predictions.score_N,
                    "losses": [step["loss"] for step in steps],
                    "counted": json.loads((recipe.run / "metrics.json").read_text())["test"]["all"]["rows"],
                }
            )
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """World -> what a run on every cut left."""
    folder = tmp_path_factory.mktemp("uneven")
    for number, cut in enumerate(CUTS.values()):
        write_uneven(folder / f"cut-{number}", cut)
    return {world: run_on_ranks(world, train_all, folder)[0] for world in WORLDS}


@pytest.mark.parametrize("name", CUTS)
def test_evaluation_counts_every_row_once(name: str, trained: dict[int, list[dict[str, Any]]]) -> None:
    place, cut = list(CUTS).index(name), CUTS[name]
    for world in WORLDS:
        assert trained[world][place]["rows"] == list(range(cut.bad, sum(cut.test)))
        assert trained[world][place]["counted"] == sum(cut.test) - cut.bad


@pytest.mark.parametrize("name", CUTS)
def test_padding_changes_nothing(name: str, trained: dict[int, list[dict[str, Any]]]) -> None:
    place = list(CUTS).index(name)
    alone = trained[1][place]
    steps = -(-max(-(-sum(CUTS[name].train) // LANES), 1) // (BATCH // LANES))
    assert len(alone["losses"]) == steps
    for world in WORLDS[1:]:
        np.testing.assert_allclose(trained[world][place]["losses"], alone["losses"], rtol=1e-5)
        np.testing.assert_allclose(trained[world][place]["scores"], alone["scores"], rtol=1e-3, atol=1e-5)


def refuse(rank: int, world: int, folder: Path) -> None:
    with pytest.raises(ContractError, match=r"split test: expected at least one row, got none$"):
        train(small_recipe(folder), joined(rank, world))


def test_a_split_of_empty_files_alone_is_refused(tmp_path: Path) -> None:
    write_uneven(tmp_path, Cut((40,), (0, 0)))
    run_on_ranks(1, refuse, tmp_path)
    assert not (tmp_path / "runs").exists()
