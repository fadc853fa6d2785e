"""The format of a checkpoint: tensor shards, their keys, index.json, and one safetensors file per rank."""

import json
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from sidrec.errors import CheckpointError
from sidrec.io.safetensors_files import DTYPES, safetensors_header


@dataclass(frozen=True)
class TensorShard:
    """The part of the tensor `key`, of `shape`, that begins at `offset`.

    values: a view of where it lives, in the model or an optimizer: writing reads it, reading fills it.
    owned: whether this rank writes it; of equal copies on several ranks one is owned.
    """

    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    values: Tensor
    owned: bool = True

    @property
    def name(self) -> str:
        """Names the shard within its checkpoint: its key and where it begins."""
        return shard_name(self.key, self.offset)


def shard_name(key: str, offset: tuple[int, ...]) -> str:
    """The name of the shard of tensor `key` that begins at `offset`, as in "model/dense.weight@0,0"."""
    return f"{key}@{','.join(map(str, offset))}"


def whole_tensor(key: str, values: Tensor, owned: bool = True) -> TensorShard:
    """A whole tensor as one shard."""
    return TensorShard(key, tuple(values.shape), (0,) * values.dim(), values, owned)


# The names of a model's shards, which no plan decides.
#
# model/NAME              weights and buffers, named as in the state_dict; a table is [rows, width] however it is
#   sharded
# optimizer/NAME/sum      element-wise Adagrad of a table, [rows, width]
# optimizer/NAME/row_sum  row-wise Adagrad of a table, [rows, S] for S shards of its columns; 1 where they are not cut
# optimizer/NAME/STATE    what torch's optimizer keeps of a dense layer
# ranks/RANK/...          what belongs to one rank


MODEL, OPTIMIZER, RANKS = "model", "optimizer", "ranks"
SUM, ROW_SUM = "sum", "row_sum"


def is_table(name: str) -> bool:
    """Whether a parameter is an embedding table."""
    return ".embedding_bags." in name


def table_of(name: str) -> str:
    """The table that a parameter is: items.embedding_bags.hid.weight -> hid."""
    return name.split(".")[-2]


def parameter_of(key: str) -> str:
    """The parameter that a shard of an optimizer's state belongs to: optimizer/NAME/STATE -> NAME."""
    return key.split("/")[1]


# Weights of a state_dict are tensors or ShardedTensors. Reading a ShardedTensor's metadata avoids torch's warning.


Weight = Tensor | ShardedTensor


def shape_of(weight: Weight) -> tuple[int, ...]:
    """The shape of the whole."""
    return tuple(weight.metadata().size if isinstance(weight, ShardedTensor) else weight.shape)


def dtype_of(weight: Weight) -> torch.dtype:
    """The type of its values."""
    return weight.metadata().tensor_properties.dtype if isinstance(weight, ShardedTensor) else weight.dtype


def has_local_rows(weight: Weight) -> bool:
    """Whether this rank holds any of it: of a table with fewer rows than ranks, not all do."""
    return not isinstance(weight, ShardedTensor) or any(shard.tensor.numel() for shard in weight.local_shards())


# index.json: which shard of which tensor lies in which file of a checkpoint, and what the files must be.


INDEX = "index.json"
VERSION = 1


@dataclass(frozen=True)
class StoredShard:
    """A rectangle of a tensor: its offset, its shape, and the file that holds it under `shard_name`."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of that shape, in shards that cover it. dtype: as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[StoredShard, ...]


@dataclass(frozen=True)
class StoredFile:
    """size: bytes. crc32: of all of them."""

    size: int
    crc32: int


@dataclass(frozen=True)
class CheckpointIndex:
    """tensors: key -> where its shards are. files: name within the checkpoint -> what it must be."""

    version: int
    tensors: dict[str, StoredTensor]
    files: dict[str, StoredFile]


_INDEX: TypeAdapter[CheckpointIndex] = TypeAdapter(CheckpointIndex)


def write_index(path: Path, index: CheckpointIndex) -> None:
    """Writes path/index.json."""
    (path / INDEX).write_text(json.dumps(asdict(index), separators=(",", ":")) + "\n")


def read_index(path: Path) -> CheckpointIndex:
    """Reads path/index.json. Raises CheckpointError for one that is none, or names files outside the checkpoint."""
    where = path / INDEX
    try:
        raw = json.loads(where.read_bytes())
        if isinstance(raw, dict) and raw.get("version") != VERSION:
            raise CheckpointError(f"{where}: expected an index of version {VERSION}, got {raw.get('version')}")
        index = _INDEX.validate_python(raw)
    except OSError as error:
        raise CheckpointError(f"{where}: expected the checkpoint's index, got {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{where}: expected the checkpoint's index, got {at}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: expected the checkpoint's index as JSON, got {error}") from None
    for name in {*index.files, *(shard.file for tensor in index.tensors.values() for shard in tensor.pieces)}:
        if name not in index.files or Path(name).name != name:
            raise CheckpointError(f"{where}: expected files of this folder that it lists, got {name!r}")
    for key, tensor in index.tensors.items():
        _check_cover(where, key, tensor)
    return index


def _check_cover(where: Path, key: str, tensor: StoredTensor) -> None:
    """Shards lie inside their tensor and hold as many values as it has: with files as they were written, all of it."""
    sizes = [len(tensor.shape), *(len(of) for shard in tensor.pieces for of in (shard.offset, shard.shape))]
    inside = len(set(sizes)) == 1 and all(
        start >= 0 and length >= 0 and start + length <= size
        for shard in tensor.pieces
        for start, length, size in zip(shard.offset, shard.shape, tensor.shape, strict=True)
    )
    held = sum(math.prod(shard.shape) for shard in tensor.pieces)
    if tensor.dtype not in DTYPES or not inside or held != math.prod(tensor.shape):
        raise CheckpointError(f"{where}: expected shards that make up the tensor {key}, got {tensor}")


# A rank's shards as one safetensors file, written straight from the memory that they are in.


CHUNK = 1 << 24  # bytes written at a time


def write_shard_file(path: Path, shards: Sequence[TensorShard]) -> StoredFile:
    """Writes the file and has it on the disk when it returns; the largest dtypes first, so that each is aligned."""
    ordered = sorted(shards, key=lambda shard: -shard.values.element_size())
    header = safetensors_header((shard.name, shard.values.dtype, tuple(shard.values.shape)) for shard in ordered)
    with path.open("wb") as file:
        checksum = _write(file, header, 0)
        for shard in ordered:
            checksum = _write_tensor(file, shard.values, checksum)
        file.flush()
        os.fsync(file.fileno())
        return StoredFile(file.tell(), checksum)


def _write_tensor(file: BinaryIO, values: Tensor, checksum: int) -> int:
    if not values.numel():
        return checksum
    rows = values.detach().reshape(1) if values.dim() == 0 else values.detach()
    step = max(1, CHUNK // max(1, rows[0].numel() * rows.element_size()))
    for start in range(0, len(rows), step):  # a few rows at a time: columns of a table do not lie together
        part = rows[start : start + step].contiguous().cpu().reshape(-1).view(torch.uint8)
        checksum = _write(file, part.numpy().data, checksum)
    return checksum


def _write(file: BinaryIO, data: bytes | memoryview, checksum: int) -> int:
    file.write(data)
    return zlib.crc32(data, checksum)


# Staging: copies of a rank's shards, so that training can go on while they are written.


class StagingBuffers:
    """Buffers that are filled again for every checkpoint; page-locked for shards that live on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, shards: Sequence[TensorShard]) -> list[TensorShard]:
        """The shards with values as they are now, in this object's memory: the next call overwrites them."""
        before, self._buffers = self._buffers, {}
        copies = []
        for shard in shards:
            values, buffer = shard.values.detach(), before.get(shard.name)
            if buffer is None or buffer.shape != values.shape or buffer.dtype != values.dtype:
                buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            buffer.copy_(values, non_blocking=True)
            self._buffers[shard.name] = buffer
            copies.append(replace(shard, values=buffer))
        if any(shard.values.is_cuda for shard in shards):
            torch.cuda.synchronize()
        return copies
