"""TorchRec's DeepFM."""

from collections.abc import Sequence

from torchrec.models.deepfm import SimpleDeepFMNN

from sidrec.config.backbone import DeepFmBackbone
from sidrec.model.backbones.embedded import EmbeddedByName, tables_like


def build_deepfm(config: DeepFmBackbone, features: Sequence[str], dim: int, dense_width: int) -> SimpleDeepFMNN:
    """TorchRec's SimpleDeepFMNN without its last sigmoid, taking (dense [B, X], embedded [B, F, D])."""
    model = SimpleDeepFMNN(dense_width, tables_like(features, dim), config.dense_layer, config.deep_layer)
    model.sparse_arch = EmbeddedByName(features)
    model.over_arch.model = model.over_arch.model[:-1]
    return model
