"""A rank's pieces as one safetensors file, written straight from the memory that they are in."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from sidrec.checkpoint.index import StoredFile
from sidrec.checkpoint.piece import Piece
from sidrec.checkpoint.tensor_file import header_of

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
