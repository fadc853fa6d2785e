"""What networks have in common that may weigh their levels' tokens: all that becomes of the weights is here.

Shapes: B items, N all items, V vector width, L levels.
"""

import numpy as np
from torch import Tensor

from sidrec.sid.networks.item_weights import ItemWeights
from sidrec.sid.networks.network import Network


class WeightedNetwork(Network):
    """`weights`: of every level, by the item's whole vector; None without a router."""

    weights: ItemWeights | None

    def survey(self, vectors_NV: np.ndarray) -> None:
        if self.weights is not None:
            self.weights.survey(vectors_NV)

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

    def lacks(self, weights_BL: Tensor | None) -> bool:
        """Whether the decoder wants weights that are not there."""
        return self.weights is not None and weights_BL is None
