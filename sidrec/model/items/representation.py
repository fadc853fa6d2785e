"""The contract of item representations: from the lookups of unique items to what the backbone gets.

Shapes: B rows, U items, T history positions, W weighted and G matched granularities, V width of a content vector, F
features, D width, S statistics, E dense features.
"""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class ItemLookup:
    """embedded: item feature -> [U, D], of one split of the KeyedTensor: a slice's gradient would be as wide as all.

    token_weights_UW, granules_UG, content_UV: as the Batch has them; the last two for kinds that ask for them.
    """

    embedded: dict[str, Tensor]
    token_weights_UW: Tensor
    granules_UG: Tensor | None = None
    content_UV: Tensor | None = None


class ItemRepresentation(nn.Module):
    """features: names of the F vectors; those of pooled histories begin with history_. width: dense features E."""

    features: tuple[str, ...]
    width: int

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns embedding features [B, F, D] and dense features [B, E]."""
        raise NotImplementedError

    def losses(self, items: ItemLookup, target_B: Tensor, stats_BS: Tensor) -> dict[str, Tensor]:
        """Auxiliary losses to train with, by name: each row's share [B], times the loss's weight."""
        return {}
