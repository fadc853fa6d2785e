"""Token weights for networks that know an item by its vector alone: a router on the whole vector.

Shapes: B items, N all items, V vector width, L levels.
"""

import numpy as np
from torch import Tensor, nn

from sidrec.config.learners import Router
from sidrec.schema import BEHAVIOR, ContractError
from sidrec.sid.networks.behavior_norm import BehaviorNorm
from sidrec.sid.networks.router import TokenRouter


def column_part(columns: tuple[tuple[str, int], ...], name: str) -> slice | None:
    """Where a column lies within the concatenated vectors; None where there is no such column."""
    start = 0
    for column, width in columns:
        if column == name:
            return slice(start, start + width)
        start += width
    return None


class ItemWeights(nn.Module):
    """Weights of every level. The factor by behaviour norm is there if `behavior` is among the vector columns.

    It is taken from that column in training and in encoding alike, so that exported weights are those trained with;
    behaviour vectors that only the losses see do not enter.
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

    def survey(self, vectors_NV: np.ndarray) -> None:
        """Takes from all items what the router standardises by, and the range of behaviour norms."""
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
