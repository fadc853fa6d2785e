"""What a planned run needs, against counts by hand and against what is really allocated."""

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from sidrec.checkpoint.state import state_shards
from sidrec.data.batch import packed
from sidrec.data.dataset import read_dataset
from sidrec.data.loader import open_split
from sidrec.data.rows import Rows
from sidrec.data.worker import BatchArrays, pack
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks
from sidrec.preflight.resource_estimate import (
    bytes_per_row,
    estimate_disk,
    estimate_ranks,
    item_bytes,
    loader_memory,
    rank_tables,
    total_bytes,
)
from sidrec.preflight.step_memory import saved_for_backward
from sidrec.train.assembly import build_training
from sidrec.train.optimizers import build_optimizer
from tests.preflight.planned import small_run
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log

OPTIMIZERS = [{"kind": "adagrad"}, {"kind": "rowwise_adagrad"}, {"kind": "sgd"}]


def test_tables_by_hand(tmp_path: Path) -> None:
    """Tables of 8 columns: hid 61 rows, user_id 41, cat_a 5, and SIDs; with Adagrad every value has a state."""
    run = small_run(tmp_path, 1)
    rows = sum(table.num_embeddings for table in run.workload.tables.values())
    assert rows >= 61 + 41 + 5
    (alone,) = rank_tables(run.plan, run.workload, run.hardware, run.sharders)
    assert (alone.host, alone.device, alone.saved) == (rows * 8 * 4 * 2, 0, rows * 8 * 4 * 2)


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_two_ranks_hold_all_tables_between_them(sharding: str, tmp_path: Path) -> None:
    run = small_run(tmp_path, 2, parallel={"sharding": sharding})
    values = sum(table.num_embeddings * 8 for table in run.workload.tables.values())
    found = rank_tables(run.plan, run.workload, run.hardware, run.sharders)
    if sharding == "data_parallel":  # weights, Adagrad's sums and gradients on both; rank 0 saves all but gradients
        assert [(rank.host, rank.saved) for rank in found] == [(values * 12, values * 8), (values * 12, 0)]
    else:
        assert sum(rank.host for rank in found) == sum(rank.saved for rank in found) == values * 8


def _pieces(rank: int, world: int, folder: str, sections: dict[str, object]) -> int:
    recipe = small_recipe(Path(folder), **sections)
    ranks: Ranks = joined(rank, world)
    data = read_dataset(recipe)
    model = build_training(recipe, data, ranks).model
    optimizer = build_optimizer(model, recipe.optimizer, recipe.model.embedding_dim)
    optimizer.init_state()
    return sum(piece.values.nbytes for piece in state_shards(model, optimizer, ranks) if piece.owned)


@pytest.mark.parametrize("kind", ["adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("sharding", ["row_wise", "data_parallel"])
def test_a_checkpoint_holds_as_many_bytes_as_predicted(kind: str, sharding: str, tmp_path: Path) -> None:
    """Per rank, on two: up to a few numbers that dense layers' optimizers count their steps with, and buffers."""
    sections: dict[str, Any] = {"parallel": {"sharding": sharding}, "optimizer": {"tables": {"kind": kind}}}
    run = small_run(tmp_path, 2, **sections)
    predicted = [rank.saved for rank in estimate_ranks(run, 50)]
    written = run_on_ranks(2, _pieces, str(tmp_path), sections)
    assert written[0] == pytest.approx(predicted[0], rel=0.02)
    assert written[1] == pytest.approx(predicted[1], rel=0.02)


def test_disk_is_every_checkpoint_that_may_be_there_at_once(tmp_path: Path) -> None:
    checkpoint = {"keep": 3, "best": {"split": "test"}}
    run = small_run(tmp_path, 1, checkpoint=checkpoint, evaluate={"save_predictions": False})
    estimates = estimate_ranks(run, 50)
    assert total_bytes(estimate_disk(run, estimates)) == (3 + 1 + 1) * estimates[0].saved


def test_a_copy_is_needed_only_where_checkpoints_are_written_in_the_background(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (behind,) = estimate_ranks(small_run(tmp_path / "a", 1, checkpoint={"background": True}), 50)
    (before,) = estimate_ranks(small_run(tmp_path / "b", 1, checkpoint={"background": False}), 50)
    assert total_bytes(behind.host) - total_bytes(before.host) == behind.saved == before.saved


def test_a_decoded_row_and_a_batch_have_the_bytes_that_are_counted(tmp_path: Path) -> None:
    run = small_run(tmp_path, 1)
    loader = open_split(
        run.recipe.data, run.recipe.model, "train", rank=0, world=1, seed=0, shuffle=True,
        tables=run.tables, manifest=run.manifest,
    )  # fmt: skip
    step = next(loader.reader.steps(0, [0]))
    arrays = [getattr(step.rows, name) for name in Rows.__dataclass_fields__]
    assert sum(array.nbytes for array in arrays) == bytes_per_row(run.columns) * len(step.rows)
    # How many items are unique is reckoned, and arrays are aligned.
    block = pack(BatchArrays(run.tables.for_workers(), ("user_id", "cat_a"))(step.rows, 1.0))
    assert block.bytes_.nbytes == pytest.approx(run.batch.packed_bytes, rel=0.2)
    batch = packed(block, run.tables).to(torch.device("cpu"))
    tensors = [batch.items.values(), batch.items.lengths(), batch.context.values(), batch.context.lengths()]
    tensors += [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    own = sum(storage.nbytes() for place, storage in memory.items() if place != block.bytes_.data_ptr())
    assert own == pytest.approx(run.batch.unpacked_bytes, rel=0.2)


def test_a_loader_process_holds_its_lanes_buffers(tmp_path: Path) -> None:
    """600 rows in 4 lanes of 150, of which a rank of two has two: a buffer of 100 rows and a group of 50 each."""
    run = small_run(tmp_path, 2)
    found = loader_memory(run.recipe.data, run.columns, run.tables, rows=600, largest_group=50, world=2)
    masks = len({id(mask) for mask in run.tables.for_workers().has_row.values() if mask is not None})
    assert found.rows == 2 * (100 + 50) * bytes_per_row(run.columns)
    assert found.items == item_bytes(run.tables) == 61 * 4 + 61 * masks


def test_estimated_activations_equal_those_that_autograd_keeps(tmp_path: Path) -> None:
    """The dry forward against the same forward with real tables, its lookups left out of both."""
    run = small_run(tmp_path, 1)
    loader = open_split(
        run.recipe.data, run.recipe.model, "train", rank=0, world=1, seed=0, shuffle=True,
        tables=run.tables, manifest=run.manifest,
    )  # fmt: skip
    batch = next(iter(loader.batches(0)))
    model = Ranker(run.recipe.model, run.sizes).train()
    for collection in (model.items, model.context):
        assert collection is not None
        collection.to_empty(device="cpu")
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        return kept.setdefault(tensor.untyped_storage()._cdata, tensor)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    for known in (*model.parameters(), *model.buffers()):
        kept.pop(known.untyped_storage()._cdata, None)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert saved_for_backward(run.recipe.model, run.sizes, run.batch) == pytest.approx(real, rel=0.35)


@pytest.mark.parametrize(
    "item",
    [{"kind": "hid"}, {"kind": "sid_coord"}, {"kind": "hid", "hid_index": {"kind": "managed_collision", "rows": 32}}],
)
def test_a_larger_batch_keeps_more(item: dict[str, object], tmp_path: Path) -> None:
    write_small_log(tmp_path)
    sizes = []
    for batch_size in (64, 256):
        run = small_run(
            tmp_path / str(batch_size),
            1,
            data={"batch_size": batch_size, "path": str(tmp_path / "data"), "catalog": str(tmp_path / "catalog")},
            model={"item": item},
        )
        sizes.append(saved_for_backward(run.recipe.model, run.sizes, run.batch))
    assert 2 * sizes[0] < sizes[1] < 5 * sizes[0]
    assert prod(sizes) > 0
