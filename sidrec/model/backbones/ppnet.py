"""PPNet, the personalised half of PEPNet (arXiv 2302.01115).

Shapes: B rows, F embedding features, D width, X dense features, I = X + F D inputs, H width of a layer.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from sidrec.config.backbone import PpnetBackbone


class GateNU(nn.Module):
    """2 sigmoid(W2 relu(W1 x)) (PEPNet, equations 1 and 2, gamma = 2): scales by 0 to 2, 1 where it knows nothing."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layers(x)


def prior_features(priors: Sequence[str], item: Sequence[str]) -> list[str]:
    """Names of features for names of priors: "item" stands for all of an item's features but the pooled histories."""
    target = [name for name in item if not name.startswith("history_")]
    return [name for prior in priors for name in (target if prior == "item" else [prior])]


class PPNet(nn.Module):
    """h_{l+1} = relu(W_l h_l) * GateNU_l([stop_gradient(h_0); priors]), h_0 = [dense; embedded]; logit = w . h_last.

    The priors are some of h_0's features again; through the gates only they learn.
    """

    def __init__(
        self, config: PpnetBackbone, priors: Sequence[str], features: Sequence[str], dim: int, dense_width: int
    ) -> None:
        super().__init__()
        self.priors = [list(features).index(name) for name in priors]
        inputs = dense_width + len(features) * dim
        widths = [inputs, *config.layers]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        gate_inputs = inputs + len(self.priors) * dim
        self.gates = nn.ModuleList(GateNU(gate_inputs, config.gate_hidden, width) for width in config.layers)
        self.logit = nn.Linear(widths[-1], 1)

    def forward(self, dense_BX: Tensor, embedded_BFD: Tensor) -> Tensor:
        """Logits [B, 1]."""
        hidden_BH = inputs_BI = torch.cat([dense_BX, embedded_BFD.flatten(1)], dim=1)
        gate_inputs = torch.cat([inputs_BI.detach(), embedded_BFD[:, self.priors].flatten(1)], dim=1)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            hidden_BH = torch.relu(layer(hidden_BH)) * gate(gate_inputs)
        return self.logit(hidden_BH)
