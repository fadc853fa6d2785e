"""Rows of a checkpoint's tables, read from whatever rectangles they were stored in."""

from pathlib import Path

import pytest
import torch

from sidrec.checkpoint.stored_tables import StoredTable, checkpoint_tables, open_checkpoint, sharding_text
from sidrec.checkpoint.tensor_shard import read_index
from sidrec.errors import CheckpointError
from tests.checkpoint.made_up_checkpoint import HID, HID_ROW_SUM, HID_SUM, USER, grid, numbered, write_checkpoint

TABLE_RD = numbered(13, 6)
CUTS = {(1, 1): "whole", (4, 1): "4 ranges of rows", (1, 3): "3 blocks of columns"}
CUTS |= {(3, 2): "3 ranges of rows x 2 blocks of columns"}


@pytest.mark.parametrize("cut", CUTS)
def test_any_rows_of_any_cut(cut: tuple[int, int], tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "step-7", {HID: grid(TABLE_RD, *cut)})
    table = StoredTable(path, HID)
    for first in range(14):
        for last in range(first, 14):
            assert torch.equal(table.rows(first, last), TABLE_RD[first:last])
    assert sharding_text(table.tensor) == CUTS[cut]


def test_parts_cover_the_table_in_order(tmp_path: Path) -> None:
    table = StoredTable(write_checkpoint(tmp_path / "step-7", {HID: grid(TABLE_RD, 3, 2)}), HID)
    row = 6 * 4  # bytes
    parts = list(table.parts(5 * row + 1))
    assert [(first, len(rows)) for first, rows in parts] == [(0, 5), (5, 5), (10, 3)]
    assert torch.equal(torch.cat([rows for _, rows in parts]), TABLE_RD)
    assert [len(rows) for _, rows in table.parts(1)] == [1] * 13, "one row at least"


def test_tables_and_their_state_are_recognized_by_key(tmp_path: Path) -> None:
    layer = "model/backbone.weight"
    tensors = {HID: grid(TABLE_RD, 1, 1), HID_SUM: grid(TABLE_RD, 2, 1), layer: grid(numbered(2, 2), 1, 1)}
    tensors |= {USER: grid(numbered(3, 4), 1, 1), HID_ROW_SUM: grid(numbered(13, 2), 1, 2)}
    path = write_checkpoint(tmp_path / "step-7", tensors)
    tables = checkpoint_tables(path, read_index(path))
    assert list(tables) == ["hid", "user_id"]
    assert {name: state.shape for name, state in tables["hid"].state.items()} == {"sum": (13, 6), "row_sum": (13, 2)}
    assert tables["user_id"].state == {}


def test_files_that_differ_from_the_index(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "step-7", {HID: grid(TABLE_RD, 2, 1)})
    with pytest.raises(CheckpointError, match="expected a table model/nothing, got none of that name"):
        StoredTable(path, "model/nothing")
    opened = StoredTable(path, HID)
    assert torch.equal(opened.rows(0, 13), TABLE_RD)
    file = path / "rank-1.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    for table in (opened, StoredTable(path, HID)):
        with pytest.raises(CheckpointError, match=r"rank-1.safetensors: expected rows of model/items.*, got: "):
            table.rows(0, 13)
        assert torch.equal(table.rows(0, 7), TABLE_RD[:7]), "the other file is sound"
    for other, got in ((whole.replace(b"[6,6]", b"[9,4]"), r"F32 \[9, 4\]"), (whole.replace(b"hid", b"did"), "none")):
        file.write_bytes(other)
        with pytest.raises(CheckpointError, match=rf"expected F32 \[6, 6\] of {HID}, as the index says, got {got}"):
            StoredTable(path, HID).rows(0, 13)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"rank-1.safetensors: expected rows"):
        opened.rows(12, 13)


def test_a_run_means_its_best_checkpoint_or_else_its_newest(tmp_path: Path) -> None:
    for step in (9, 10):
        write_checkpoint(tmp_path / "checkpoints" / f"step-{step}", {HID: grid(TABLE_RD, 1, 1)})
    (tmp_path / "checkpoints" / "step-11.partial").mkdir()
    assert open_checkpoint(tmp_path).path.name == "step-10"
    assert open_checkpoint(tmp_path / "checkpoints" / "step-9").path.name == "step-9"
    (tmp_path / "checkpoints" / "best.json").write_text('{"split": "test", "metric": "auc", "value": 0.5, "step": 9}')
    assert open_checkpoint(tmp_path).path.name == "step-9"
    with pytest.raises(
        CheckpointError, match="expected a run directory with checkpoints, or one of these, got neither"
    ):
        open_checkpoint(tmp_path / "checkpoints")
