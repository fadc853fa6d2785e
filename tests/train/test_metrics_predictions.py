"""Predictions of all ranks come together as one process would have them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.data.batch import Batch
from sidrec.metrics.exact import Metrics, measure
from sidrec.metrics.predictions import PredictionCollector, Predictions, load_predictions
from sidrec.schema import ContractError
from tests.ranks import run_on_ranks

ROWS = 999


def _batch(row: list[int], weight: list[float] | None = None) -> Batch:
    """Rows with the user, item and label that their row number says."""
    row_B = torch.tensor(row, dtype=torch.int64)
    nothing = KeyedJaggedTensor.from_lengths_sync(["x"], torch.zeros(0, dtype=torch.int64), row_B.new_zeros(len(row)))
    return Batch(
        items=nothing,
        context=nothing,
        token_weights_UW=torch.zeros(len(row), 0),
        granules_UG=torch.zeros(len(row), 0, dtype=torch.int64),
        content_UV=torch.zeros(len(row), 0),
        target_B=row_B,
        history_BT=row_B[:, None],
        dense_BX=torch.zeros(len(row), 0),
        stats_BS=torch.zeros(len(row), 0),
        label_B=(row_B % 3 == 0).float(),
        weight_B=torch.ones(len(row)) if weight is None else torch.tensor(weight),
        row_B=row_B,
        user_B=row_B * 7919 % 101 + 2**40,  # beyond what a float can hold exactly
        item_B=row_B % 50 + 1,
        rows_per_rank=torch.tensor(float(len(row))),
        chance_B=torch.zeros(len(row)),
    )


def _score(row_B: torch.Tensor) -> torch.Tensor:
    return torch.sin(row_B.double() * 12.9898).mul(8).round().div(4).float()  # many ties


WORLDS = ((1, 1), (2, 2), (2, 1), (4, 3))  # ranks, and how many of them hold rows
Gathered = tuple[Predictions, Metrics]


def _gather_dealt_rows(rank: int, busy: int, group: dist.ProcessGroup) -> Gathered:
    """Deals the rows to the first `busy` ranks in uneven batches, the last batch padded with rows of weight 0."""
    collector = PredictionCollector("test", extra=("gate",))
    mine = [row for row in range(ROWS) if rank < busy and (row * row // 7) % busy == rank]
    for start in range(0, len(mine), 64):
        rows = mine[start : start + 64]
        padding = [0] * (64 - len(rows))
        batch = _batch(rows + padding, [1.0] * len(rows) + [0.0] * len(padding))
        collector.add(*collector.rows(batch, _score(batch.row_B)[:, None].requires_grad_(), gate=batch.row_B / 1000))
    predictions = collector.gathered(group, ROWS)
    return predictions, measure(predictions.label_N, predictions.score_N, predictions.user_N)


def _gather_in_every_world(rank: int, ranks: int) -> tuple[dict[tuple[int, int], Gathered], str]:
    """Worlds are groups of one launch: starting processes is what takes long."""
    gathered = {}
    for world, busy in WORLDS:
        group = dist.new_group(list(range(world)))
        if rank < world:
            gathered[(world, busy)] = _gather_dealt_rows(rank, busy, group)
    overlapping = PredictionCollector("test")
    overlapping.add(*overlapping.rows(_batch([rank, ranks]), torch.zeros(2)))
    with pytest.raises(ContractError) as refused:
        overlapping.gathered(None, rows=ranks + 1)
    return gathered, str(refused.value)


@pytest.fixture(scope="module")
def ranks_results() -> list[tuple[dict[tuple[int, int], Gathered], str]]:
    return run_on_ranks(4, _gather_in_every_world)


@pytest.mark.parametrize("world", WORLDS)
def test_any_number_of_ranks_gives_the_same_bits_also_with_an_empty_rank(
    world: tuple[int, int], ranks_results: list[tuple[dict[tuple[int, int], Gathered], str]]
) -> None:
    expected_row = torch.arange(ROWS)
    alone = _batch(list(range(ROWS)))
    metrics = measure(alone.label_B.numpy(), _score(expected_row).numpy(), alone.user_B.numpy())
    assert metrics["gauc"] is not None
    results = [gathered[world] for gathered, _ in ranks_results if world in gathered]
    assert len(results) == world[0]
    for predictions, rank_metrics in results:
        assert np.array_equal(predictions.row_N, expected_row.numpy())
        assert np.array_equal(predictions.user_N, alone.user_B.numpy())
        assert np.array_equal(predictions.item_N, alone.item_B.numpy())
        assert np.array_equal(predictions.label_N, alone.label_B.numpy())
        assert np.array_equal(predictions.score_N, _score(expected_row).numpy())
        assert np.array_equal(predictions.extra["gate"], (expected_row / 1000).numpy())
        assert rank_metrics == metrics  # every metric, every bit


def test_a_row_that_several_ranks_scored_is_refused_by_all_of_them(
    ranks_results: list[tuple[dict[tuple[int, int], Gathered], str]],
) -> None:
    message = "predictions of split test: expected each row once, got row 4 twice"
    assert [refused for _, refused in ranks_results] == [message] * 4


def test_one_process_needs_no_process_group() -> None:
    collector = PredictionCollector("test")
    collector.add(*collector.rows(_batch([2, 0]), torch.tensor([0.5, -0.5])))
    collector.add(*collector.rows(_batch([1]), torch.tensor([0.25])))
    predictions = collector.gathered(None, rows=3)
    assert predictions.row_N.tolist() == [0, 1, 2]
    assert predictions.score_N.tolist() == [-0.5, 0.25, 0.5]
    assert predictions.label_N.tolist() == [1.0, 0.0, 0.0]


def test_an_empty_split_gives_no_rows() -> None:
    assert len(PredictionCollector("test").gathered(None, rows=0)) == 0


@pytest.mark.parametrize(
    ("row", "rows", "left_out", "message"),
    [
        ([0, 1, 3], 4, 0, "expected 4 rows, got 3; the first row not seen is 2"),
        ([0, 1, 1], 3, 0, "expected each row once, got row 1 twice"),
        ([0, 1, 5], 3, 0, r"expected rows in \[0, 3\), got row 5"),
        ([-1, 0, 1], 3, 0, r"expected rows in \[0, 3\), got row -1"),
        ([0, 1, 2], 3, 1, "expected 2 rows, got 3"),
        ([], 3, 0, "expected 3 rows, got 0; the first row not seen is 0"),
    ],
)
def test_rows_missing_or_beyond_the_split_are_named(row: list[int], rows: int, left_out: int, message: str) -> None:
    collector = PredictionCollector("test")
    collector.add(*collector.rows(_batch(row), torch.zeros(len(row))))
    with pytest.raises(ContractError, match=f"predictions of split test: {message}"):
        collector.gathered(None, rows, left_out)


def test_rows_left_out_by_the_reader_are_allowed() -> None:
    collector = PredictionCollector("test")
    collector.add(*collector.rows(_batch([0, 3]), torch.zeros(2)))
    assert collector.gathered(None, rows=4, left_out=2).row_N.tolist() == [0, 3]


def test_a_score_that_is_not_finite_is_named() -> None:
    collector = PredictionCollector("test")
    collector.add(*collector.rows(_batch([0, 1, 2]), torch.tensor([0.0, float("nan"), float("inf")])))
    with pytest.raises(ContractError, match=r"column score: expected finite scores, got nan at row 1 \(2 of 3 rows\)"):
        collector.gathered(None, rows=3)


def test_predictions_survive_the_file(tmp_path: Path) -> None:
    collector = PredictionCollector("test", extra=("gate",))
    batch = _batch([1, 0, 2])
    collector.add(*collector.rows(batch, torch.tensor([0.1, 0.2, 0.3]), gate=torch.tensor([0.4, 0.5, 0.6])))
    saved = collector.gathered(None, rows=3)
    saved.save(tmp_path / "predictions_test.parquet")
    loaded = load_predictions(tmp_path / "predictions_test.parquet", "test")
    assert [path.name for path in tmp_path.iterdir()] == ["predictions_test.parquet"]
    for name in ("row_N", "user_N", "item_N", "label_N", "score_N"):
        assert np.array_equal(getattr(loaded, name), getattr(saved, name))
        assert getattr(loaded, name).dtype == getattr(saved, name).dtype
    assert loaded.extra["gate"].tolist() == saved.extra["gate"].tolist()


def test_a_predictions_file_without_scores_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "predictions_test.parquet"
    pq.write_table(pa.table({"row": [0], "user_id": [1], "item_id": [1], "label": pa.array([1.0], pa.float32())}), path)
    with pytest.raises(ContractError, match="expected a column score"):
        load_predictions(path, "test")


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "predictions_test.parquet"
    path.mkdir()  # so that the last step, the rename, fails
    ids, values = np.arange(2), np.zeros(2, dtype=np.float32)
    with pytest.raises(OSError, match="predictions_test"):
        Predictions("test", ids, ids, ids, values, values).save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["predictions_test.parquet"]
