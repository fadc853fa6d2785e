"""The format of a checkpoint: tensor shards, their keys, index.json, and the safetensors files of the ranks."""

import json
import math
import os
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Annotated, BinaryIO

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from sidrec.errors import CheckpointError
from sidrec.io.files import replaced_file

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""torch's dtypes as safetensors names them."""
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class TensorShard:
    """The part of the tensor `key`, of `shape`, that begins at `offset`.

    values: a view into the model or an optimizer: saving reads it, loading fills it.
    owned: whether this rank saves it; of equal copies on several ranks exactly one is owned.
    """

    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    values: Tensor
    owned: bool = True

    @property
    def name(self) -> str:
        """The shard's name within its checkpoint, see `shard_name`."""
        return shard_name(self.key, self.offset)


def shard_name(key: str, offset: tuple[int, ...]) -> str:
    """The name of the shard of tensor `key` that begins at `offset`, as in "model/dense.weight@0,0"."""
    return f"{key}@{','.join(map(str, offset))}"


def whole_tensor(key: str, values: Tensor, owned: bool = True) -> TensorShard:
    """A whole tensor as one shard."""
    return TensorShard(key, tuple(values.shape), (0,) * values.dim(), values, owned)


# Keys, the same under every sharding plan:
#
# model/NAME              weights and buffers, named as in the state_dict; a table is [rows, width]
# optimizer/NAME/sum      element-wise Adagrad of a table, [rows, width]
# optimizer/NAME/row_sum  row-wise Adagrad of a table, [rows, S] for S shards of its columns
# optimizer/NAME/STATE    state of torch's optimizer for a dense layer
# updates/NAME            updates received by each row of the HID table, [rows, 1]
# ranks/RANK/...          state of one rank


MODEL, OPTIMIZER, UPDATES, RANKS = "model", "optimizer", "updates", "ranks"
SUM, ROW_SUM = "sum", "row_sum"


def is_table(name: str) -> bool:
    """Whether a parameter is an embedding table."""
    return ".embedding_bags." in name


def table_of(name: str) -> str:
    """The table of a parameter: items.embedding_bags.hid.weight -> hid."""
    return name.split(".")[-2]


def parameter_of(key: str) -> str:
    """The parameter of an optimizer state: optimizer/NAME/STATE -> NAME."""
    return key.split("/")[1]


# Weights of a state_dict are tensors or ShardedTensors. Reading a ShardedTensor's metadata avoids torch's warning.


Weight = Tensor | ShardedTensor


def shape_of(weight: Weight) -> tuple[int, ...]:
    """The shape of the whole tensor."""
    return tuple(weight.metadata().size if isinstance(weight, ShardedTensor) else weight.shape)


def dtype_of(weight: Weight) -> torch.dtype:
    """The type of its values."""
    return weight.metadata().tensor_properties.dtype if isinstance(weight, ShardedTensor) else weight.dtype


def has_local_rows(weight: Weight) -> bool:
    """Whether this rank holds a part of it. With fewer rows than ranks, some ranks hold none."""
    return not isinstance(weight, ShardedTensor) or any(shard.tensor.numel() for shard in weight.local_shards())


# index.json: tensors, the files that hold their shards, and sizes and checksums of all files.


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
    """A tensor and the shards that cover it, called "pieces" in index.json. dtype: as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]
    shards: Annotated[tuple[StoredShard, ...], Field(alias="pieces")]


@dataclass(frozen=True)
class StoredFile:
    """size: bytes. crc32: of the whole file."""

    size: int
    crc32: int


@dataclass(frozen=True)
class CheckpointIndex:
    """tensors: key -> its shards. files: name within the checkpoint -> size and checksum."""

    version: int
    tensors: dict[str, StoredTensor]
    files: dict[str, StoredFile]


_INDEX: TypeAdapter[CheckpointIndex] = TypeAdapter(CheckpointIndex)


def write_index(path: Path, index: CheckpointIndex) -> None:
    """Writes path/index.json in one step."""
    with replaced_file(path / INDEX, one_writer=True) as partial:
        partial.write_text(
            json.dumps(_INDEX.dump_python(index, by_alias=True), separators=(",", ":")) + "\n", encoding="utf-8"
        )


def read_index(path: Path) -> CheckpointIndex:
    """Reads path/index.json. Raises CheckpointError if it is invalid or names files outside the checkpoint."""
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
    for name in {*index.files, *(shard.file for tensor in index.tensors.values() for shard in tensor.shards)}:
        if name not in index.files or Path(name).name != name:
            raise CheckpointError(f"{where}: expected files of this folder that it lists, got {name!r}")
    for key, tensor in index.tensors.items():
        _check_cover(where, key, tensor)
    return index


def _check_cover(where: Path, key: str, tensor: StoredTensor) -> None:
    """Raises CheckpointError unless shards lie inside their tensor and have as many values together as it has."""
    sizes = [len(tensor.shape), *(len(of) for shard in tensor.shards for of in (shard.offset, shard.shape))]
    inside = len(set(sizes)) == 1 and all(
        start >= 0 and length >= 0 and start + length <= size
        for shard in tensor.shards
        for start, length, size in zip(shard.offset, shard.shape, tensor.shape, strict=True)
    )
    held = sum(math.prod(shard.shape) for shard in tensor.shards)
    if tensor.dtype not in DTYPES or not inside or held != math.prod(tensor.shape):
        raise CheckpointError(f"{where}: expected shards that make up the tensor {key}, got {tensor}")


CHUNK = 1 << 24  # bytes written at a time


def write_shard_file(path: Path, shards: Sequence[TensorShard]) -> StoredFile:
    """Writes a rank's shards as one safetensors file and syncs it to disk; largest dtypes first, to align all."""
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
    for start in range(0, len(rows), step):  # a few rows at a time: a shard of columns is not contiguous
        part = rows[start : start + step].contiguous().cpu().reshape(-1).view(torch.uint8)
        checksum = _write(file, part.numpy().data, checksum)
    return checksum


def _write(file: BinaryIO, data: bytes | memoryview, checksum: int) -> int:
    file.write(data)
    return zlib.crc32(data, checksum)


class StagingBuffers:
    """Copies of a rank's shards, so that training can go on while they are written.

    They lie one after another in one piece of host memory, which is reused for every checkpoint, and page-locked for
    shards on a GPU: exactly their bytes, where torch's allocator of pinned memory would round each to a power of two.
    """

    def __init__(self, lock: Callable[[Tensor], None] | None = None) -> None:
        """lock: page-locks memory; None: `page_lock` if a shard is on a GPU."""
        self._lock, self._memory = lock, torch.empty(0, dtype=torch.uint8)

    def take(self, shards: Sequence[TensorShard]) -> list[TensorShard]:
        """The shards with copies of their present values, which the next call overwrites.

        Raises CheckpointError if the memory cannot be page-locked.
        """
        on_gpu = any(shard.values.is_cuda for shard in shards)
        sizes = [-(-shard.values.nbytes // STAGED_AT) * STAGED_AT for shard in shards]
        ends = list(accumulate(sizes, initial=0))
        if ends[-1] > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8)  # before more is allocated
            self._memory = torch.empty(ends[-1], dtype=torch.uint8)
            lock = self._lock or (page_lock if on_gpu else None)
            if lock is not None:
                lock(self._memory)
        copies = []
        for shard, start in zip(shards, ends, strict=False):
            values = shard.values.detach()
            copy = self._memory[start : start + values.nbytes].view(values.dtype).view(values.shape)
            copies.append(replace(shard, values=copy.copy_(values, non_blocking=True)))
        if on_gpu:
            torch.cuda.synchronize()
        return copies


STAGED_AT = 64
"""Bytes: each copy begins at a multiple of it, a line of a CPU's cache."""


def page_lock(memory: Tensor) -> None:
    """Page-locks memory of the host until the tensor is freed, so that GPUs copy into it directly.

    Raises CheckpointError if CUDA refuses.
    """
    runtime, start = torch.cuda.cudart(), memory.data_ptr()
    error = int(runtime.cudaHostRegister(start, memory.nbytes, 1))  # 1: for all of the process's GPUs
    if error:
        expected = f"{memory.nbytes:,} bytes of host memory that CUDA can page-lock"
        advice = "checkpoint.background=false writes without a copy"
        raise CheckpointError(f"checkpoint.background: expected {expected}, got CUDA error {error}; {advice}")
    weakref.finalize(memory, runtime.cudaHostUnregister, start)


# Safetensors files (https://github.com/huggingface/safetensors, "Format"): 8 bytes, little-endian, with the length of a
# JSON header; the header, name -> dtype, shape, first and last byte; the tensors, row-major, one after another.
#
# The library's writer needs all tensors in memory as bytes, so the header is written here. Its reader maps the file:
# mapped pages count as the process's memory, and truncating a mapped file kills the process. So the library only
# checks a file, and rows are read with ordinary reads.


ALIGNMENT = 8  # bytes


def safetensors_header(tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> bytes:
    """The first bytes of a file. tensors: name, type and shape, in the order in which they follow."""
    header: dict[str, object] = {}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file. dtype: as safetensors names it. start: the offset of its first byte in the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self, first: int, last: int) -> Tensor:
        """Rows [first, last) of the first dimension. Raises OSError if the file is truncated or cannot be read."""
        rows = torch.empty((last - first, *self.shape[1:]), dtype=DTYPES[self.dtype])
        if rows.numel():
            row = math.prod(self.shape[1:]) * rows.element_size()
            into = rows.view(-1).view(torch.uint8).numpy()
            with self.path.open("rb") as file:
                file.seek(self.start + first * row)
                if file.readinto(into.data) != into.nbytes:
                    raise OSError(None, "it ends before its last row", str(self.path))
        return rows


def read_header(path: Path) -> Mapping[str, FileTensor]:
    """Name -> tensor; scalars and types not in DTYPES are left out. Raises OSError for an invalid safetensors file."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise OSError(None, " ".join(str(error).split()), str(path)) from None
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {
        name: FileTensor(path, name, found["dtype"], tuple(found["shape"]), 8 + size + found["data_offsets"][0])
        for name, found in header.items()
        if name != "__metadata__" and found["shape"] and found["dtype"] in DTYPES
    }
