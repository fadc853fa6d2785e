"""index.json: which piece of which tensor lies in which file of a checkpoint, and what the files must be."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sidrec.checkpoint.piece import DTYPES, CheckpointError

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
