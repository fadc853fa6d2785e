"""The contract of item representations: from the lookups of unique items to what the backbone gets.

Shapes: B rows, U items, T history positions, W weighted granularities, F features, D width, S statistics, E dense
features.
"""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class ItemLookup:
    """tables: table -> [U, D], of one split of the KeyedTensor: a slice's gradient would be as wide as all tables.

    token_weights_UW: weights of the granularities, W = 0 where none are used.
    """

    tables: dict[str, Tensor]
    token_weights_UW: Tensor


class ItemRepresentation(nn.Module):
    """tables: names of the tables it reads. features: names of the F vectors. width: number of dense features E."""

    tables: tuple[str, ...]
    features: tuple[str, ...]
    width: int

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns embedding features [B, F, D] and dense features [B, E]."""
        raise NotImplementedError
