"""What stands in TorchRec's models where they look up embeddings: ours are looked up before.

Shapes: B rows, F embedding features, D width.
"""

from collections.abc import Sequence

from torch import Tensor, fx, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.model.tables import embedding_tables, one_feature_each


def tables_like(features: Sequence[str], dim: int) -> EmbeddingBagCollection:
    """A collection on `meta` that holds nothing: TorchRec's constructors read the shape of the model from it."""
    return embedding_tables(one_feature_each(dict.fromkeys(features, 1)), dim)


class EmbeddedFeatures(nn.Module):
    """For the DLRM family, whose SparseArch makes [B, F, D]: hands that through."""

    def __init__(self, features: Sequence[str], dim: int) -> None:
        super().__init__()
        self.F = len(features)
        self.D = dim
        self.sparse_feature_names = list(features)

    def forward(self, embedded_BFD: Tensor) -> Tensor:
        return embedded_BFD


class EmbeddedByName(nn.Module):
    """For DeepFM, whose SparseArch makes a KeyedTensor: name -> [B, D] of [B, F, D]."""

    def __init__(self, features: Sequence[str]) -> None:
        super().__init__()
        self.features = list(features)

    def forward(self, embedded_BFD: Tensor) -> dict[str, Tensor]:
        return _by_name(self.features, embedded_BFD)


@fx.wrap  # one unbind: F slices would each have a gradient as wide as all; and fx cannot tell how many there are
def _by_name(features: Sequence[str], embedded_BFD: Tensor) -> dict[str, Tensor]:
    return dict(zip(features, embedded_BFD.unbind(dim=1), strict=True))
