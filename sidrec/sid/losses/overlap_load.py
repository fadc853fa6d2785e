"""How loaded an overlap of codes is, and how much stronger its repulsion gets (AdaSID's LAS, arXiv 2604.23522).

Shapes as in `sidrec.sid.networks.network`; N pairs of a batch, each once.
"""

import math

import torch
from torch import Tensor, nn

from sidrec.config.sid_losses import OverlapRepulsion

PERCENTILE = 0.95
STEPS = 100


def pattern_load(codes_BL: Tensor, first_N: Tensor, second_N: Tensor) -> Tensor:
    """int64 [N]: how many of the batch's pairs agree in exactly the same levels, either order counted as printed."""
    agree_NL = codes_BL[first_N] == codes_BL[second_N]
    bits_L = 1 << torch.arange(codes_BL.shape[1], device=codes_BL.device)
    _, pattern_N, pairs = torch.unique((agree_NL * bits_L).sum(dim=1), return_inverse=True, return_counts=True)
    return 2 * pairs[pattern_N]


def bucket_load(codes_BL: Tensor, first_N: Tensor, second_N: Tensor) -> Tensor:
    """int64 [N]: how many items of the batch have the pair's longest common prefix; 0 where the first codes differ."""
    agree_NL = codes_BL[first_N] == codes_BL[second_N]
    prefix_N = agree_NL.long().cumprod(dim=1).sum(dim=1)
    items_B1L = [torch.zeros_like(codes_BL[:, :1])]
    for length in range(1, codes_BL.shape[1] + 1):
        _, prefix_B, items = torch.unique(codes_BL[:, :length], dim=0, return_inverse=True, return_counts=True)
        items_B1L.append(items[prefix_B, None])
    return torch.cat(items_B1L, dim=1)[first_N, prefix_N]


class LoadStrength(nn.Module):
    """a = f_min + (f_max - f_min) (min(c, d) / d)^alpha, the ramp from load c to strength.

    d is given, or the 95th percentile of c averaged over the first hundred steps that had a pair; until then over the
    steps so far. It is a buffer, so that a training that goes on knows it.
    """

    saturation: Tensor
    steps: Tensor

    def __init__(self, config: OverlapRepulsion) -> None:
        super().__init__()
        self.config = config
        given = config.load_saturation
        self.register_buffer("saturation", torch.tensor(float(given or 0), dtype=torch.float64))
        self.register_buffer("steps", torch.tensor(0 if given is None else STEPS))

    def forward(self, load_N: Tensor) -> Tensor:
        """float32 strengths [N] of at least one pair, in [f_min, f_max]; in training it also observes the loads."""
        if self.training and self.steps < STEPS:
            self._observe(load_N)
        config = self.config
        saturation = self.saturation.clamp_min(1)
        share_N = load_N.clamp(max=saturation) / saturation
        return (config.load_min + (config.load_max - config.load_min) * share_N**config.load_power).float()

    def _observe(self, load_N: Tensor) -> None:
        percentile = torch.kthvalue(load_N, math.ceil(PERCENTILE * len(load_N))).values
        self.steps += 1
        self.saturation += (percentile - self.saturation) / self.steps
