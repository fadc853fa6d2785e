"""A rank's pieces as one safetensors file, written straight from the memory that they are in.

The library's own writer takes a copy of everything as bytes first. The format: 8 bytes, little-endian, the length of a
JSON header; the header, name -> dtype, shape, first and last byte; the tensors, row-major, one after another
(https://github.com/huggingface/safetensors, "Format").
"""

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from sidrec.checkpoint.index import StoredFile
from sidrec.checkpoint.piece import NAMES, Piece

ALIGNMENT = 8  # bytes
CHUNK = 1 << 24  # bytes written, and read for the checksum, at a time


def write_piece_file(path: Path, pieces: Sequence[Piece]) -> StoredFile:
    """Writes the file and has it on the disk when it returns; the largest dtypes first, so that each is aligned."""
    ordered = sorted(pieces, key=lambda piece: -piece.values.element_size())
    header: dict[str, object] = {}
    end = 0
    for piece in ordered:
        start, end = end, end + piece.values.numel() * piece.values.element_size()
        shape = list(piece.values.shape)
        header[piece.name] = {"dtype": NAMES[piece.values.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        checksum = _write(file, len(text).to_bytes(8, "little") + text, 0)
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


def file_checksum(path: Path) -> int:
    """CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
