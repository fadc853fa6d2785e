"""TorchRec's sparse architectures with SID-Coord in them; the rest of a model does not see the difference.

Both keep the old architecture's collection under its name, so that the keys of old checkpoints stay valid.

Shapes: B rows, F features, D width.
"""

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from sidrec.plug.sid_coord import SidCoord


class SidCoordSparseArch(nn.Module):
    """For DLRM, DLRM_DCN, DLRM_Projection: as torchrec.models.dlrm.SparseArch, with F, D, sparse_feature_names."""

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection, sid_coord: SidCoord) -> None:
        super().__init__()
        self.embedding_bag_collection = embedding_bag_collection
        self.sid_coord = sid_coord
        tables = embedding_bag_collection.embedding_bag_configs()
        self.sparse_feature_names = [name for table in tables for name in table.feature_names]
        self.F = len(self.sparse_feature_names)
        self.D = tables[0].embedding_dim

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Returns [B, F, D]. Raises as `SidCoord.forward` does."""
        embedded = self.embedding_bag_collection(features).to_dict()
        target_BD, _ = self.sid_coord.target(embedded[self.sid_coord.item], features)
        stacked = [target_BD if name == self.sid_coord.item else embedded[name] for name in self.sparse_feature_names]
        return torch.cat(stacked, dim=1).reshape(-1, self.F, self.D)


class SidCoordKeyedArch(nn.Module):
    """For SimpleDeepFMNN: as torchrec.models.deepfm.SparseArch."""

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection, sid_coord: SidCoord) -> None:
        super().__init__()
        self.embedding_bag_collection = embedding_bag_collection
        self.sid_coord = sid_coord

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Returns [B, D] per feature. Raises as `SidCoord.forward` does."""
        return self.sid_coord(self.embedding_bag_collection(features), features)
