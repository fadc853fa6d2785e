"""From the recipe's backbone section to the module that ranks.

Shapes: B rows, F embedding features, D width, X dense features.
"""

from collections.abc import Sequence

from torch import nn

from sidrec.config.backbone import Backbone, DeepFmBackbone, PpnetBackbone
from sidrec.model.backbones.deepfm import build_deepfm
from sidrec.model.backbones.dlrm import build_dlrm
from sidrec.model.backbones.ppnet import PPNet, prior_features


def build_backbone(
    config: Backbone, item: Sequence[str], context: Sequence[str], dim: int, dense_width: int
) -> nn.Module:
    """The module that `config` names: it maps (dense [B, X], embedded [B, F, D]) to logits [B, 1].

    item, context: names of the F embeddings, first those that an item representation makes of target and history.
    """
    features = [*item, *context]
    match config:
        case DeepFmBackbone():
            return build_deepfm(config, features, dim, dense_width)
        case PpnetBackbone():
            priors = prior_features(config.priors, item)
            return PPNet(config, priors, features, dim, dense_width)
        case _:
            return build_dlrm(config, features, dim, dense_width)
