"""Copies of a rank's pieces, taken while training waits, so that they can be written while it goes on."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sidrec.checkpoint.piece import Piece


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
