"""Token weights of items: a router that keeps them sparse, and the base of networks that use one.

`ItemWeights` gives the weights of all levels from an item's whole vector; networks derived from `WeightedNetwork` use
it. `TokenRouter` is the router alone, `BehaviorNorm` its factor by how much behaviour is known of the item.

Shapes: N all items, B items of a batch, V vector width, L levels, E tokens (experts) that are weighted.
"""

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.config.learner_parts import Router
from sidrec.schema import BEHAVIOR, ContractError
from sidrec.sid.networks.network import Network, mlp
from sidrec.sid.replicas import SINGLE, Replicas

ROWS = 65_536  # items in memory at a time
WEAKEST, STRONGEST = 1e-12, 1e2  # range of lambda
TINY = 1e-6  # an input with a smaller standard deviation counts as constant
SAME = 1e-4  # norms with a smaller relative spread count as equal, as those of unit vectors do


class ItemWeights(nn.Module):
    """Weights of every level from an item's whole vector [B, V] -> [B, L].

    With `behavior` among the vector columns, the weights have the factor by behaviour norm, in training and in encoding
    alike, so that exported weights are those that were trained. Behaviour vectors that only losses use do not count.
    """

    def __init__(self, config: Router, columns: tuple[tuple[str, int], ...], levels: int) -> None:
        """Raises ContractError for the target `item_norm` without the column."""
        super().__init__()
        self.router = TokenRouter(config, sum(width for _, width in columns), levels)
        part = column_part(columns, BEHAVIOR)
        if part is None and config.target == "item_norm":
            names = [name for name, _ in columns]
            raise ContractError("learner, router.target item_norm", f"{BEHAVIOR} among the vector columns", names)
        self.norm = None if part is None else BehaviorNorm(part)

    def measure(self, vectors_NV: np.ndarray) -> None:
        """Sets the router's standardisation and the range of behaviour norms from all items."""
        self.router.measure(vectors_NV)
        if self.norm is not None:
            self.norm.measure(vectors_NV)

    def forward(self, vectors_BV: Tensor) -> Tensor:
        """weights_BL."""
        return self.router(vectors_BV, self._scaled_norm(vectors_BV))

    def loss(self, weights_BL: Tensor, vectors_BV: Tensor) -> dict[str, Tensor]:
        """The router's term, or none without regularisation."""
        if not self.router.config.regularize:
            return {}
        return {"router": self.router.loss(weights_BL, self._scaled_norm(vectors_BV))}

    def _scaled_norm(self, vectors_BV: Tensor) -> Tensor | None:
        return None if self.norm is None else self.norm(vectors_BV)


class WeightedNetwork(Network):
    """A network that may weigh the tokens of its levels. weights: None without a router."""

    weights: ItemWeights | None

    def measure(self, vectors_NV: np.ndarray) -> None:
        if self.weights is not None:
            self.weights.measure(vectors_NV)

    def after_step(self) -> dict[str, float]:
        return {} if self.weights is None else self.weights.router.after_step()

    def token_weights(self, vectors_BV: Tensor) -> Tensor | None:
        """weights_BL, None without a router."""
        return None if self.weights is None else self.weights(vectors_BV)

    def weight_terms(self, weights_BL: Tensor | None, vectors_BV: Tensor) -> dict[str, Tensor]:
        """The router's term; none without a router, or without regularisation."""
        if self.weights is None or weights_BL is None:
            return {}
        return self.weights.loss(weights_BL, vectors_BV)

    def misses_weights(self, weights_BL: Tensor | None) -> bool:
        """Whether the decoder needs weights and got none."""
        return self.weights is not None and weights_BL is None


def column_part(columns: tuple[tuple[str, int], ...], name: str) -> slice | None:
    """The dimensions of a column within the concatenated vectors; None where there is no such column."""
    start = 0
    for column, width in columns:
        if column == name:
            return slice(start, start + width)
        start += width
    return None


class TokenRouter(nn.Module):
    """Router of ADC-SID (arXiv 2510.25622, eq. 22 and 23): R(x) = sigmoid(n) relu(MLP(x) + b), [B, V] -> [B, E].

    n is the item's scaled behaviour norm; without it, the factor sigmoid(n) is left out. The biases start at 1, so that
    every token counts at first. The sparsity is that of ReMoE (arXiv 2412.14711): the loss has a strength lambda that
    is not trained but follows the share of zero weights. That share, and how often each token is active, are taken over
    all replicas.

    After `measure`, x is standardised: unit vectors hardly differ in any one dimension, and without standardisation
    tokens switched off for all items at once, which no lambda undoes.
    """

    mean_V: Tensor
    spread_V: Tensor

    strength: Tensor
    zeros: Tensor
    wanted: Tensor
    replicas: Replicas = SINGLE

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
        """Sets mean and standard deviation of every input from all items, which may be a memory map."""
        mean_V = inputs_NV.mean(axis=0, dtype=np.float64)
        starts = range(0, len(inputs_NV), ROWS)
        squares_V = sum(np.square(inputs_NV[start : start + ROWS] - mean_V).sum(axis=0) for start in starts)
        spread_V = np.sqrt(squares_V / len(inputs_NV))
        self.mean_V.copy_(torch.from_numpy(mean_V))
        self.spread_V.copy_(torch.from_numpy(np.where(spread_V > TINY, spread_V, 1.0)))

    def forward(self, inputs_BV: Tensor, scaled_norm_B: Tensor | None = None) -> Tensor:
        """weights_BE >= 0."""
        weights_BE = torch.relu(self._mlp((inputs_BV - self.mean_V) / self.spread_V))
        return weights_BE if scaled_norm_B is None else torch.sigmoid(scaled_norm_B)[:, None] * weights_BE

    def loss(self, weights_BE: Tensor, scaled_norm_B: Tensor | None = None) -> Tensor:
        """lambda (1/B) sum_t sum_j f_tj R_tj with f_tj = n_j / ((1 - sparsity_t) B), n_j the items with R_j > 0.

        sparsity_t is the config's sparsity, times (1 - scaled_norm_t) with the target `item_norm`. With the balance
        `scalar`, every n_j is replaced by their mean. Also records the shares that `after_step` compares.
        """
        rows = len(weights_BE)
        active_E = self.replicas.sum((weights_BE > 0).sum(dim=0, dtype=torch.float64)) / self.replicas.size
        sparsity_B = weights_BE.new_full((rows,), self.config.sparsity)
        if self.config.target == "item_norm":
            assert scaled_norm_B is not None, "the target item_norm needs behaviour norms"
            sparsity_B = sparsity_B * (1 - scaled_norm_B)
        self.zeros.copy_(1 - active_E.mean() / rows)
        self.wanted.copy_(self.replicas.sum(sparsity_B.mean(dtype=torch.float64)) / self.replicas.size)
        if self.config.balance == "scalar":
            active_E = active_E.mean().expand_as(active_E)
        load_BE = active_E.to(weights_BE) / ((1 - sparsity_B)[:, None] * rows)
        return self.strength.to(weights_BE) * (load_BE * weights_BE).sum() / rows

    def after_step(self) -> dict[str, float]:
        """Multiplies lambda by `rate` if too few weights of the last step were zero, divides it if too many were."""
        if self.config.regularize:
            direction = torch.sign(self.wanted - self.zeros)
            self.strength.mul_(self.config.rate**direction).clamp_(WEAKEST, STRONGEST)
        return {"router/strength": float(self.strength), "router/zero_weights": float(self.zeros)}


class BehaviorNorm(nn.Module):
    """Norm of an item's behaviour vector, scaled to [0, 1] over all items (ADC-SID, arXiv 2510.25622, section 4.2).

    low, high: the norms that count as 0 and 1; buffers that `measure` sets.
    """

    low: Tensor
    high: Tensor

    def __init__(self, part: slice, clip_quantile: float = 0.0) -> None:
        """part: the dimensions of the vectors that hold the behaviour. clip_quantile: see `norm_range`."""
        super().__init__()
        self.part, self._clip_quantile = part, clip_quantile
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def measure(self, vectors_NV: np.ndarray) -> None:
        """Sets the range from all items, before the training. The vectors may be a memory map."""
        low, high = norm_range(norms(vectors_NV, self.part), self._clip_quantile)
        self.low.fill_(low)
        self.high.fill_(high)

    def forward(self, vectors_BV: Tensor) -> Tensor:
        """float32 [B] in [0, 1]; 0 for items without behaviour, whose vector is zero."""
        norms_B = vectors_BV[:, self.part].norm(dim=1)
        return scaled(norms_B, float(self.low), float(self.high))


def norms(behavior_NE: np.ndarray, part: slice = slice(None)) -> np.ndarray:
    """float32 [N]: L2 norms of the rows over the dimensions in `part`, in bounded memory."""
    starts = range(0, len(behavior_NE), ROWS)
    return np.concatenate([np.linalg.norm(behavior_NE[start : start + ROWS, part], axis=1) for start in starts])


def norm_range(norms_N: np.ndarray, clip_quantile: float = 0.0) -> tuple[float, float]:
    """The norms that count as 0 and as 1: outer quantiles over items with a behaviour vector.

    clip_quantile: 0 takes the smallest and largest norm, as in the paper. Without any behaviour the range is (0, 0).
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
