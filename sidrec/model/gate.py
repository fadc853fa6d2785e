"""How HID and SID become one vector of the target (SID-Coord, arXiv 2604.10471, module II).

Shapes: B rows, D width, S statistics.
"""

import torch
from torch import Tensor, nn

from sidrec.config.model import Gate, StatsGate, SumGate
from sidrec.model.statistics import build_statistics


class TargetAwareGate(nn.Module):
    """e = g * e_hid + (1 - g) * e_sid, g = sigmoid(MLP(stats)): popular items trust their HID, rare ones their SID.

    In the residual form, which is not in the paper, e = e_sid + g * e_hid.
    """

    def __init__(self, config: StatsGate, dim: int, mean_S: Tensor, std_S: Tensor) -> None:
        super().__init__()
        self.statistics = build_statistics(config.stats, mean_S, std_S)
        self.residual = config.form == "residual"
        output = nn.Linear(config.hidden, dim if config.per_dimension else 1)
        nn.init.constant_(output.bias, config.output_bias)
        self.mlp = nn.Sequential(nn.Linear(self.statistics.width, config.hidden), nn.ReLU(), output)

    def value(self, stats_BS: Tensor) -> Tensor:
        """g [B, 1], or [B, D] with one value per dimension; in (0, 1)."""
        return torch.sigmoid(self.mlp(self.statistics(stats_BS)))

    def forward(self, hid_BD: Tensor, sid_BD: Tensor, stats_BS: Tensor) -> Tensor:
        """Returns e [B, D]."""
        gate = self.value(stats_BS)
        return sid_BD + gate * hid_BD if self.residual else torch.lerp(sid_BD, hid_BD, gate)


class PlainSum(nn.Module):
    """e = e_hid + e_sid: what remains when the gate is taken away."""

    def forward(self, hid_BD: Tensor, sid_BD: Tensor, stats_BS: Tensor) -> Tensor:
        """Returns e [B, D]; the statistics play no part."""
        return hid_BD + sid_BD


def build_gate(config: Gate, dim: int, mean_S: Tensor, std_S: Tensor) -> TargetAwareGate | PlainSum:
    """The module that `config` names."""
    match config:
        case StatsGate():
            return TargetAwareGate(config, dim, mean_S, std_S)
        case SumGate():
            return PlainSum()
