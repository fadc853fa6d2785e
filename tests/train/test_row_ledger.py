"""The ledger holds the rows that the model was trained on, by step, whatever happened to the run on its way."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from sidrec.config import Recipe
from sidrec.data.batch import Batch
from sidrec.data.reader import Lanes, Shuffling
from sidrec.schema import ContractError
from sidrec.train.ledger_check import (
    EPOCH,
    ROW,
    SCHEMA,
    STEP,
    TRAINED,
    RowLedger,
    check_ledger,
    drop_after,
    ledger_files,
    main,
    read_ledger,
)
from tests.ranks import run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.train.refusals import put, recipe_of, start


class Sees(nn.Module):
    """A model as far as a ledger knows it."""

    def forward(self, batch: Batch) -> None:
        pass


def batch(rows: list[int], weights: list[float] | None = None) -> Batch:
    made = object.__new__(Batch)
    made.row_B = torch.tensor(rows)
    made.weight_B = torch.tensor(weights or [1.0] * len(rows))
    return made


def kept(folder: Path) -> list[tuple[int, int, int, bool]]:
    table = pa.concat_tables([read_ledger(path) for path in ledger_files(folder)])
    return sorted(zip(*(table[name].to_pylist() for name in (STEP, ROW, EPOCH, TRAINED)), strict=True))


def write(folder: Path, name: str, steps: list[int], rows: list[int]) -> None:
    folder.mkdir(exist_ok=True)
    epochs, trained = [0] * len(rows), [True] * len(rows)
    pq.write_table(pa.table([epochs, steps, rows, trained], SCHEMA), folder / name)


def test_a_step_has_its_batch_without_padding(tmp_path: Path) -> None:
    ledger = RowLedger(tmp_path, rank=0)
    ledger.add(0, 1, batch([4, 1, -1], [1, 0, 0]))  # 1 is in quarantine, -1 is padding
    ledger.add(1, 2, batch([7]))
    ledger.add(1, 3, batch([8]), trained=False)
    assert not ledger_files(tmp_path), "nothing is written before a checkpoint"
    ledger.flush()
    ledger.flush()
    assert [path.name for path in ledger_files(tmp_path)] == ["steps-000000001-000000003.rank-0.parquet"]
    assert kept(tmp_path) == [(1, 1, 0, False), (1, 4, 0, True), (2, 7, 1, True), (3, 8, 1, False)]


def test_what_lies_beyond_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, "steps-000000001-000000002.rank-0.parquet", [1, 2], [10, 20])
    write(tmp_path, "steps-000000003-000000005.rank-0.parquet", [3, 4, 5], [30, 40, 50])
    write(tmp_path, "steps-000000003-000000005.rank-1.parquet", [3, 4, 5], [31, 41, 51])
    write(tmp_path, "steps-000000006-000000008.rank-1.parquet", [6], [60])
    (tmp_path / "steps-000000006-000000008.rank-0.partial").write_text("killed here")
    drop_after(tmp_path, 4)
    assert [step_row[:2] for step_row in kept(tmp_path)] == [(1, 10), (2, 20), (3, 30), (3, 31), (4, 40), (4, 41)]
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    assert ledger_files(tmp_path)[-1].name == "steps-000000003-000000004.rank-1.parquet"
    drop_after(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_check_counts_missing_repeated_and_omitted_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small_log(tmp_path, rows=120)
    recipe = ledger_recipe(tmp_path)
    assert start(recipe) == 0
    (epoch,) = check_ledger(recipe.run)
    assert epoch.exact
    assert epoch.once == 120
    path = ledger_files(recipe.run / "ledger")[0]
    table = read_ledger(path)
    rows = table[ROW].to_numpy()
    pq.write_table(pa.concat_tables([table.slice(2), table.slice(len(rows) - 1)]), path)
    (epoch,) = check_ledger(recipe.run)
    assert epoch.missing == tuple(sorted(rows[:2].tolist()))
    assert epoch.repeated == (rows[-1],)
    assert (epoch.once, epoch.left_out) == (117, 0)
    capsys.readouterr()
    assert main([str(recipe.run)]) == 1
    assert "117 rows trained on once, 0 left out, 2 missing (" in capsys.readouterr().out


def test_rows_in_quarantine_are_left_out_and_not_missing(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=120)
    put(tmp_path / "data/log/train/part-0.parquet", "label", 7, 0.5)
    recipe = ledger_recipe(tmp_path, data={"bad_rows": "quarantine"})
    assert start(recipe) == 0
    (epoch,) = check_ledger(recipe.run)
    assert epoch.exact
    assert (epoch.once, epoch.left_out) == (119, 1)


def ledger_recipe(folder: Path, **sections: object) -> Recipe:
    return recipe_of(folder, train={"epochs": 1, "row_ledger": True}, **sections)


@pytest.mark.parametrize("pipeline", ["sparse_dist", "plain"])
def test_on_two_ranks_each_step_has_the_rows_of_the_order(tmp_path: Path, pipeline: str) -> None:
    write_small_log(tmp_path, rows=150)
    sections = {"train": {"epochs": 2, "row_ledger": True}, "checkpoint": {"every": 2}}
    recipe = small_recipe(tmp_path, parallel={"pipeline": pipeline}, **sections)
    run_on_ranks(2, _train, recipe)
    expected = sorted((step, row) for step, rows in enumerate(_rows_by_hand(recipe, 150), start=1) for row in rows)
    assert [(step, row) for step, row, _, _ in kept(recipe.run / "ledger")] == expected
    assert all(epoch.exact and epoch.once == 150 for epoch in check_ledger(recipe.run))


def _train(rank: int, world: int, recipe: Recipe) -> None:
    from sidrec.train.run import train
    from tests.ranks import joined

    train(recipe, joined(rank, world))


def _rows_by_hand(recipe: Recipe, rows: int) -> list[np.ndarray]:
    """The rows of every step: groups of 50 in the epoch's order, cut into lanes, mixed in buffers, dealt to steps."""
    lanes = Lanes(rows, recipe.data.lanes, recipe.data.batch_size)
    shuffling = Shuffling(recipe.data.shuffle_rows, recipe.seed, recipe.data.order, recipe.data.lanes)
    steps = []
    for epoch in range(recipe.train.epochs):
        laid = np.concatenate([np.arange(50) + 50 * group for group in shuffling.sequence(rows // 50, epoch)])
        mixed = []
        for lane in range(lanes.lanes):
            own = laid[lanes.interval(lane).start : lanes.interval(lane).stop]  # one buffer: lanes are shorter
            mixed.append(own[shuffling.permutation(epoch, lane, 0, len(own))])
        take = lanes.rows_per_step
        steps += [np.concatenate([own[s * take : (s + 1) * take] for own in mixed]) for s in range(lanes.steps)]
    return steps


def test_a_run_without_ledger_and_a_file_that_is_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small_log(tmp_path, rows=120)
    recipe = recipe_of(tmp_path)
    assert start(recipe) == 0
    assert not (recipe.run / "ledger").exists()
    capsys.readouterr()
    assert main([str(recipe.run)]) == 2
    assert "expected the ledger of a run with train.row_ledger, got none" in capsys.readouterr().err
    (recipe.run / "ledger").mkdir()
    path = recipe.run / "ledger" / "steps-000000001-000000002.rank-0.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ContractError, match="expected a readable parquet file of a row ledger"):
        check_ledger(recipe.run)
    write(path.parent, path.name, [1], [500])
    with pytest.raises(ContractError, match=r"expected rows in \[0, 120\), got 500 to 500"):
        check_ledger(recipe.run)
