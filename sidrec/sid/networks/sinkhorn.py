"""Codes that spread a batch evenly, by entropic optimal transport (LETTER, arXiv 2405.07314, as released).

Shapes: B points, K codes.
"""

import torch
from torch import Tensor

TINY = 1e-300  # keeps a code that no point can reach from dividing by zero


@torch.no_grad()
def spread(distances_BK: Tensor, entropy: float, iterations: int) -> Tensor:
    """int64 [B]: the code of largest transported mass when points weigh the same, and codes weigh the same.

    distances_BK: squared distances. They are scaled to a range of 2, so that `entropy` does not depend on units, and
    transported by Sinkhorn's iterations (Cuturi, arXiv 1306.0895) in float64.
    """
    distances = distances_BK.double()
    span = distances.max() - distances.min() + 1e-5
    nearness = torch.exp((distances.min(dim=1, keepdim=True).values - distances) * (2 / span) / entropy)
    by_code_K = torch.ones_like(nearness[0])
    for _ in range(iterations):
        by_point_B = 1 / (nearness @ by_code_K).clamp_min(TINY)
        by_code_K = 1 / (nearness.T @ by_point_B).clamp_min(TINY)
    return (nearness * by_code_K).argmax(dim=1)  # a point's own factor does not change which code is largest
