"""Unit vectors, the ground of every cosine here. Shapes: B rows, D width."""

import torch
from torch import Tensor


def unit(vectors_BD: Tensor) -> Tensor:
    """Rows at length one; a zero row stays zero and gets no gradient, as it has no direction."""
    length_B1 = torch.linalg.vector_norm(vectors_BD, dim=1, keepdim=True)
    return vectors_BD / length_B1.masked_fill(length_B1 == 0, torch.inf)
