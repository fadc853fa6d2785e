"""The unit of a checkpoint: a rectangle of a tensor, held by a rank."""

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from sidrec.errors import CheckpointError

NAMES = {
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


DTYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class Piece:
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
        """Names the piece within its checkpoint: its key and where it begins."""
        return piece_name(self.key, self.offset)


def piece_name(key: str, offset: tuple[int, ...]) -> str:
    """The name of the piece of tensor `key` that begins at `offset`, as in "model/dense.weight@0,0"."""
    return f"{key}@{','.join(map(str, offset))}"


def whole(key: str, values: Tensor, owned: bool = True) -> Piece:
    """A tensor in one piece."""
    return Piece(key, tuple(values.shape), (0,) * values.dim(), values, owned)


# The names of a model's pieces, which no plan decides.
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
    """The parameter that a piece of an optimizer's state belongs to: optimizer/NAME/STATE -> NAME."""
    return key.split("/")[1]


# What a state_dict's weight is as a whole, whether this rank has all of it or shards.
#
# torch warns of its own ShardedTensor whenever one is asked like a Tensor; its metadata says the same in peace.


Weight = Tensor | ShardedTensor


def shape_of(weight: Weight) -> tuple[int, ...]:
    """The shape of the whole."""
    return tuple(weight.metadata().size if isinstance(weight, ShardedTensor) else weight.shape)


def dtype_of(weight: Weight) -> torch.dtype:
    """The type of its values."""
    return weight.metadata().tensor_properties.dtype if isinstance(weight, ShardedTensor) else weight.dtype


def held(weight: Weight) -> bool:
    """Whether this rank holds any of it: of a table with fewer rows than ranks, not all do."""
    return not isinstance(weight, ShardedTensor) or any(shard.tensor.numel() for shard in weight.local_shards())


# index.json: which piece of which tensor lies in which file of a checkpoint, and what the files must be.


INDEX = "index.json"
VERSION = 1


@dataclass(frozen=True)
class StoredPiece:
    """A rectangle of a tensor: where it begins, its shape, and its file, in which it has the name of `Piece.name`."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of that shape, in pieces that cover it. dtype: as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[StoredPiece, ...]


@dataclass(frozen=True)
class StoredFile:
    """size: bytes. crc32: of all of them."""

    size: int
    crc32: int


@dataclass(frozen=True)
class CheckpointIndex:
    """tensors: key -> where its pieces are. files: name within the checkpoint -> what it must be."""

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
    for name in {*index.files, *(piece.file for tensor in index.tensors.values() for piece in tensor.pieces)}:
        if name not in index.files or Path(name).name != name:
            raise CheckpointError(f"{where}: expected files of this folder that it lists, got {name!r}")
    for key, tensor in index.tensors.items():
        _check_cover(where, key, tensor)
    return index


def _check_cover(where: Path, key: str, tensor: StoredTensor) -> None:
    """Pieces lie inside their tensor and hold as many values as it has: with files as they were written, all of it."""
    sizes = [len(tensor.shape), *(len(of) for piece in tensor.pieces for of in (piece.offset, piece.shape))]
    inside = len(set(sizes)) == 1 and all(
        start >= 0 and length >= 0 and start + length <= size
        for piece in tensor.pieces
        for start, length, size in zip(piece.offset, piece.shape, tensor.shape, strict=True)
    )
    held = sum(math.prod(piece.shape) for piece in tensor.pieces)
    if tensor.dtype not in DTYPES or not inside or held != math.prod(tensor.shape):
        raise CheckpointError(f"{where}: expected pieces that make up the tensor {key}, got {tensor}")


# A rank's pieces as one safetensors file, written straight from the memory that they are in.


CHUNK = 1 << 24  # bytes written at a time


def write_piece_file(path: Path, pieces: Sequence[Piece]) -> StoredFile:
    """Writes the file and has it on the disk when it returns; the largest dtypes first, so that each is aligned."""
    ordered = sorted(pieces, key=lambda piece: -piece.values.element_size())
    header = header_of((piece.name, piece.values.dtype, tuple(piece.values.shape)) for piece in ordered)
    with path.open("wb") as file:
        checksum = _write(file, header, 0)
        for piece in ordered:
            checksum = _write_tensor(file, piece.values, checksum)
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


# The format of safetensors files: their header, and rows of tensors, read into memory of their own and none besides.
#
# 8 bytes, little-endian, the length of a JSON header; the header, name -> dtype, shape, first and last byte; the
#   tensors,
# row-major, one after another (https://github.com/huggingface/safetensors, "Format").
#
# The library's writer wants all tensors as bytes in memory first. Its reader maps the file; what it has mapped counts
# as the process's memory, and a file that is cut short under the map kills the process. So it checks the file, and
# rows are read from where its header says.


ALIGNMENT = 8  # bytes


def header_of(tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> bytes:
    """What a file begins with whose tensors, name, type and shape, follow in this order."""
    header: dict[str, object] = {}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class StoredRows:
    """A tensor in a file. dtype: as safetensors names it. start: its first byte. Rows are its first dimension."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self, first: int, last: int) -> Tensor:
        """Rows [first, last). Raises OSError for a file that has become shorter, or cannot be read."""
        rows = torch.empty((last - first, *self.shape[1:]), dtype=DTYPES[self.dtype])
        if rows.numel():
            row = math.prod(self.shape[1:]) * rows.element_size()
            into = rows.view(-1).view(torch.uint8).numpy()
            with self.path.open("rb") as file:
                file.seek(self.start + first * row)
                if file.readinto(into.data) != into.nbytes:
                    raise OSError(None, "it ends before its last row", str(self.path))
        return rows


def stored_tensors(path: Path) -> Mapping[str, StoredRows]:
    """Name -> tensor, of those that have rows and a type that is known here. Raises OSError for no safetensors file."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise OSError(None, " ".join(str(error).split()), str(path)) from None
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {
        name: StoredRows(path, name, found["dtype"], tuple(found["shape"]), 8 + size + found["data_offsets"][0])
        for name, found in header.items()
        if name != "__metadata__" and found["shape"] and found["dtype"] in DTYPES
    }


# Copies of a rank's pieces, taken while training waits, so that they can be written while it goes on.


class PieceCopies:
    """Buffers that are filled again for every checkpoint; page-locked for pieces that live on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces with values as they are now, in this object's memory: the next call overwrites them."""
        before, self._buffers = self._buffers, {}
        copies = []
        for piece in pieces:
            values, buffer = piece.values.detach(), before.get(piece.name)
            if buffer is None or buffer.shape != values.shape or buffer.dtype != values.dtype:
                buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            buffer.copy_(values, non_blocking=True)
            self._buffers[piece.name] = buffer
            copies.append(replace(piece, values=buffer))
        if any(piece.values.is_cuda for piece in pieces):
            torch.cuda.synchronize()
        return copies
