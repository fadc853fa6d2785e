"""A checkpoint written by hand, without ranks: tensors cut into the rectangles that a test wants."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sidrec.checkpoint.tensor_shard import (
    DTYPE_NAMES,
    VERSION,
    CheckpointIndex,
    StoredFile,
    StoredShard,
    StoredTensor,
    TensorShard,
    write_index,
    write_shard_file,
)
from sidrec.checkpoint.train_state import POSITION, Position, position_text
from sidrec.schema import crc32_of

HID, USER = "model/items.embedding_bags.hid.weight", "model/context.embedding_bags.user_id.weight"
HID_SUM = "optimizer/items.embedding_bags.hid.weight/sum"
HID_ROW_SUM = "optimizer/items.embedding_bags.hid.weight/row_sum"


def grid(values_RD: Tensor, rows: int, columns: int) -> list[tuple[tuple[int, ...], Tensor]]:
    """The tensor cut into so many ranges of rows and blocks of columns, the first ones larger: (offset, values)."""
    found: list[tuple[tuple[int, ...], Tensor]] = []
    row = 0
    for block_ND in values_RD.tensor_split(rows, dim=0):
        column = 0
        for part_ND in block_ND.tensor_split(columns, dim=1):
            found.append(((row, column), part_ND))
            column += part_ND.shape[1]
        row += len(block_ND)
    return found


def write_checkpoint(
    path: Path, tensors: Mapping[str, Iterable[tuple[tuple[int, ...], Tensor]]], catalog: str | None = None
) -> Path:
    """Writes a checkpoint; the shards of a tensor go to two files in turn. Returns its path."""
    path.mkdir(parents=True)
    ranks: tuple[list[TensorShard], list[TensorShard]] = ([], [])
    stored = {}
    for key, parts in tensors.items():
        cut = list(parts)
        shape = tuple(max(offset[d] + part.shape[d] for offset, part in cut) for d in range(cut[0][1].dim()))
        for number, (offset, part) in enumerate(cut):
            ranks[number % 2].append(TensorShard(key, shape, offset, part))
        shards = [StoredShard(o, tuple(part.shape), f"rank-{n % 2}.safetensors") for n, (o, part) in enumerate(cut)]
        stored[key] = StoredTensor(DTYPE_NAMES[cut[0][1].dtype], shape, tuple(shards))
    files = {f"rank-{n}.safetensors": write_shard_file(path / f"rank-{n}.safetensors", ranks[n]) for n in range(2)}
    (path / POSITION).write_text(position_text(Position(step=7, epoch=0, epoch_step=7, catalog=catalog)))
    files[POSITION] = StoredFile((path / POSITION).stat().st_size, crc32_of(path / POSITION))
    write_index(path, CheckpointIndex(VERSION, stored, files))
    return path


def numbered(rows: int, width: int, first: float = 0.0) -> Tensor:
    """A float32 table whose values are all different, so that a misplaced one shows."""
    return torch.arange(rows * width, dtype=torch.float32).reshape(rows, width) + first
