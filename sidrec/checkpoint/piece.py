"""The unit of a checkpoint: a rectangle of a tensor, held by a rank."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sidrec.config import ConfigError

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


class CheckpointError(ConfigError):
    """A checkpoint that cannot be used here; the message says why."""


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
