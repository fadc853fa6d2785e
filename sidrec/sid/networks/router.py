"""Token weights of an item, kept sparse by a controller (ADC-SID, arXiv 2510.25622, equations 22 and 23).

Shapes: N all items, B items of a batch, V vector width, E tokens (experts) that are weighted.
"""

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.config.learners import Router
from sidrec.sid.networks.mlp import mlp
from sidrec.sid.replicas import ALONE, Replicas

WEAKEST, STRONGEST = 1e-12, 1e2
ROWS = 65_536  # items in memory at a time
TINY = 1e-6  # standard deviations under which an input counts as constant


class TokenRouter(nn.Module):
    """R(x) = sigmoid(n) relu(MLP(x) + b), n the item's scaled behaviour norm, without which that factor is left out.

    The biases start at 1, so that every token counts at first. The sparsity comes from ReMoE (arXiv 2412.14711): a loss
    whose strength lambda is no parameter but follows the share of zero weights. That share and how often each token is
    active are taken over all replicas.

    After `measure`, x is standardised. Unit vectors hardly differ in any one dimension: without that, tokens were seen
    to switch off for all items at once, which no strength of the loss undoes.
    """

    mean_V: Tensor
    spread_V: Tensor

    strength: Tensor
    zeros: Tensor
    wanted: Tensor
    replicas: Replicas = ALONE

    def __init__(self, config: Router, inputs: int, tokens: int) -> None:
        super().__init__()
        self.config = config
        self._mlp = mlp((inputs, config.hidden, tokens))
        last = self._mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.ones_(last.bias)
        self.register_buffer("mean_V", torch.zeros(inputs))
        self.register_buffer("spread_V", torch.ones(inputs))
        self.register_buffer("strength", torch.tensor(config.first_strength, dtype=torch.float64))
        self.register_buffer("zeros", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("wanted", torch.tensor(config.sparsity, dtype=torch.float64))

    def measure(self, inputs_NV: np.ndarray) -> None:
        """Takes mean and standard deviation of every input from all items, which may be a memory map."""
        mean_V = inputs_NV.mean(axis=0, dtype=np.float64)
        starts = range(0, len(inputs_NV), ROWS)
        squares_V = sum(np.square(inputs_NV[start : start + ROWS] - mean_V).sum(axis=0) for start in starts)
        spread_V = np.sqrt(squares_V / len(inputs_NV))
        self.mean_V.copy_(torch.from_numpy(mean_V))
        self.spread_V.copy_(torch.from_numpy(np.where(spread_V > TINY, spread_V, 1.0)))

    def forward(self, inputs_BV: Tensor, scaled_norm_B: Tensor | None = None) -> Tensor:
        """weights_BE, at least 0."""
        weights_BE = torch.relu(self._mlp((inputs_BV - self.mean_V) / self.spread_V))
        return weights_BE if scaled_norm_B is None else torch.sigmoid(scaled_norm_B)[:, None] * weights_BE

    def loss(self, weights_BE: Tensor, scaled_norm_B: Tensor | None = None) -> Tensor:
        """lambda (1/B) sum_t sum_j f_tj R_tj with f_tj = n_j / ((1 - sparsity_t) B), n_j the items with R_j > 0.

        sparsity_t is the config's, or that times (1 - scaled_norm_t) with the target `item_norm`; the mean of n over
        tokens stands for each n_j with the balance `scalar`. Also takes note of what `after_step` acts on.
        """
        rows = len(weights_BE)
        active_E = self.replicas.total((weights_BE > 0).sum(dim=0, dtype=torch.float64)) / self.replicas.size
        sparsity_B = weights_BE.new_full((rows,), self.config.sparsity)
        if self.config.target == "item_norm":
            assert scaled_norm_B is not None, "the target item_norm needs behaviour norms"
            sparsity_B = sparsity_B * (1 - scaled_norm_B)
        self.zeros.copy_(1 - active_E.mean() / rows)
        self.wanted.copy_(self.replicas.total(sparsity_B.mean(dtype=torch.float64)) / self.replicas.size)
        if self.config.balance == "scalar":
            active_E = active_E.mean().expand_as(active_E)
        load_BE = active_E.to(weights_BE) / ((1 - sparsity_B)[:, None] * rows)
        return self.strength.to(weights_BE) * (load_BE * weights_BE).sum() / rows

    def after_step(self) -> dict[str, float]:
        """lambda grows by `rate` while too few weights of the last step were zero, and shrinks while too many were."""
        if self.config.regularize:
            direction = torch.sign(self.wanted - self.zeros)
            self.strength.mul_(self.config.rate**direction).clamp_(WEAKEST, STRONGEST)
        return {"router/strength": float(self.strength), "router/zero_weights": float(self.zeros)}
