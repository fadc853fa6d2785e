"""Safetensors files: their header, and tensors read by ranges of rows."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

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


def safetensors_header(tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> bytes:
    """What a file begins with whose tensors, name, type and shape, follow in this order."""
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


def read_header(path: Path) -> Mapping[str, FileTensor]:
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
        name: FileTensor(path, name, found["dtype"], tuple(found["shape"]), 8 + size + found["data_offsets"][0])
        for name, found in header.items()
        if name != "__metadata__" and found["shape"] and found["dtype"] in DTYPES
    }
