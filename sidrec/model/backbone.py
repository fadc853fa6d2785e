"""Backbones: unmodified rankers of TorchRec, fed with embeddings that are already looked up.

Shapes: B rows, F embedding features, D width, X dense features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config.backbone import Backbone


class EmbeddedFeatures(nn.Module):
    """Stands where TorchRec's models have their SparseArch and hands through what was looked up before: [B, F, D]."""

    def __init__(self, features: Sequence[str], dim: int) -> None:
        super().__init__()
        self.F = len(features)
        self.D = dim
        self.sparse_feature_names = list(features)

    def forward(self, embedded_BFD: Tensor) -> Tensor:
        return embedded_BFD


def build_backbone(config: Backbone, features: Sequence[str], dim: int, dense_width: int) -> nn.Module:
    """A module mapping (dense [B, X], embedded [B, F, D]) to logits [B, 1].

    TorchRec's constructor wants tables; it gets a collection of the same shape on `meta`, which is then replaced.
    """
    shape = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=name, embedding_dim=dim, num_embeddings=1, feature_names=[name])
            for name in features
        ],
        device=torch.device("meta"),
    )
    dlrm = DLRM(
        embedding_bag_collection=shape,
        dense_in_features=dense_width,
        dense_arch_layer_sizes=[*config.dense_layers, dim],
        over_arch_layer_sizes=[*config.over_layers, 1],
    )
    dlrm.sparse_arch = EmbeddedFeatures(features, dim)
    return dlrm
