"""A batch on its way from a worker process: all its tensors in one block of memory.

A tensor that crosses processes costs a file descriptor and a handshake, about half a millisecond; a batch has fourteen.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.data.batch import Batch

ALIGNMENT = 64  # bytes; a cache line, and enough for every dtype


class PackedBatch(NamedTuple):
    """block: uint8, the bytes of all tensors one after the other.

    layout: dtype, shape and first byte of each tensor, in field order; a KeyedJaggedTensor is its values and lengths.
    jagged: field -> keys and stride of its KeyedJaggedTensor.
    """

    block: Tensor
    layout: tuple[tuple[torch.dtype, tuple[int, ...], int], ...]
    jagged: Mapping[str, tuple[list[str], int]]


def pack(batch: Batch) -> PackedBatch:
    """Copies a batch on the CPU into one block."""
    tensors: list[Tensor] = []
    jagged: dict[str, tuple[list[str], int]] = {}
    for field in fields(Batch):
        value = getattr(batch, field.name)
        if isinstance(value, KeyedJaggedTensor):
            jagged[field.name] = value.keys(), value.stride()
            tensors += [value.values(), value.lengths()]
        else:
            tensors.append(value)
    layout, end = [], 0
    for tensor in tensors:
        layout.append((tensor.dtype, tuple(tensor.shape), end))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    packed = PackedBatch(torch.empty(end, dtype=torch.uint8), tuple(layout), jagged)
    for place, tensor in zip(_tensors(packed), tensors, strict=True):
        place.copy_(tensor)
    return packed


def unpack(packed: PackedBatch) -> Batch:
    """The batch, as views of the block: pinned if the block is."""
    tensors = iter(_tensors(packed))
    values = {}
    for field in fields(Batch):
        if field.name in packed.jagged:
            keys, stride = packed.jagged[field.name]
            values[field.name] = KeyedJaggedTensor(keys, next(tensors), lengths=next(tensors), stride=stride)
        else:
            values[field.name] = next(tensors)
    return Batch(**values)


def _tensors(packed: PackedBatch) -> list[Tensor]:
    return [
        packed.block[start : start + torch.Size(shape).numel() * dtype.itemsize].view(dtype).view(shape)
        for dtype, shape, start in packed.layout
    ]
