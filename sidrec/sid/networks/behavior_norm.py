"""The norm of an item's behaviour vector, scaled to [0, 1] over all items (ADC-SID, arXiv 2510.25622, section 4.2).

Shapes: N items, B items of a batch, V vector width, E behaviour width.
"""

import numpy as np
import torch
from torch import Tensor, nn

ROWS = 65_536  # vectors in memory at a time
SAME = 1e-4  # relative spread of norms under which all count as equal, as those of unit vectors do


class BehaviorNorm(nn.Module):
    """Scaled norms of the behaviour part of item vectors. Smallest and largest norm are buffers, set by `measure`."""

    low: Tensor
    high: Tensor

    def __init__(self, part: slice, clip_quantile: float = 0.0) -> None:
        """part: the columns of the vectors that hold the behaviour. clip_quantile: see `norm_range`."""
        super().__init__()
        self.part, self._clip_quantile = part, clip_quantile
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def measure(self, vectors_NV: np.ndarray) -> None:
        """Takes the range from all items, before the training. The vectors may be a memory map."""
        low, high = norm_range(norms(vectors_NV, self.part), self._clip_quantile)
        self.low.fill_(low)
        self.high.fill_(high)

    def forward(self, vectors_BV: Tensor) -> Tensor:
        """float32 [B] in [0, 1]; 0 for items without behaviour, whose vector is zero."""
        norms_B = vectors_BV[:, self.part].norm(dim=1)
        return scaled(norms_B, float(self.low), float(self.high))


def norms(behavior_NE: np.ndarray, part: slice = slice(None)) -> np.ndarray:
    """float32 [N]: L2 norms of the rows, of the columns in `part`; in bounded memory."""
    starts = range(0, len(behavior_NE), ROWS)
    return np.concatenate([np.linalg.norm(behavior_NE[start : start + ROWS, part], axis=1) for start in starts])


def norm_range(norms_N: np.ndarray, clip_quantile: float = 0.0) -> tuple[float, float]:
    """The norms that count as 0 and as 1: the outer quantiles over items with a behaviour vector.

    clip_quantile: 0 takes smallest and largest, as printed. Without any behaviour the range is (0, 0).
    """
    known = norms_N[norms_N > 0]
    if not len(known):
        return 0.0, 0.0
    low, high = np.quantile(known, [clip_quantile, 1 - clip_quantile])
    return float(low), float(high)


def scaled(norms_B: Tensor, low: float, high: float) -> Tensor:
    """(norm - low) / (high - low) within [0, 1]; zero norms give 0, and all others 1 where the norms do not differ."""
    if high - low <= SAME * high:
        return (norms_B > 0).float()
    return ((norms_B - low) / (high - low)).clamp(0, 1)
