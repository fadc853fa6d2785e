"""From the recipe's backbone section to the module that ranks.

Shapes: B rows, F embedding features, D width, X dense features.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, fx, nn
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config.model import (
    Backbone,
    DeepFmBackbone,
    DlrmBackbone,
    DlrmDcnBackbone,
    DlrmProjectionBackbone,
    PpnetBackbone,
)
from sidrec.model.tables import embedding_tables, one_feature_each


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


# TorchRec's DLRM family: dot products, cross network or projections between a dense arch and an over arch.


def build_dlrm(
    config: DlrmBackbone | DlrmDcnBackbone | DlrmProjectionBackbone, features: Sequence[str], dim: int, dense_width: int
) -> DLRM:
    """The one that `config` names, taking (dense [B, X], embedded [B, F, D])."""
    tables = tables_like(features, dim)
    dense_layers, over_layers = [*config.dense_layers, dim], [*config.over_layers, 1]
    model: DLRM
    match config:
        case DlrmBackbone():
            model = DLRM(tables, dense_width, dense_layers, over_layers)
        case DlrmDcnBackbone():
            model = DLRM_DCN(tables, dense_width, dense_layers, over_layers, config.cross_layers, config.low_rank)
        case DlrmProjectionBackbone():
            first, second = ([*config.branch_layers, vectors * dim] for vectors in config.projections)
            model = DLRM_Projection(tables, dense_width, dense_layers, over_layers, first, second)
    model.sparse_arch = EmbeddedFeatures(features, dim)
    return model


# TorchRec's DeepFM.


def build_deepfm(config: DeepFmBackbone, features: Sequence[str], dim: int, dense_width: int) -> SimpleDeepFMNN:
    """TorchRec's SimpleDeepFMNN without its last sigmoid, taking (dense [B, X], embedded [B, F, D])."""
    model = SimpleDeepFMNN(dense_width, tables_like(features, dim), config.dense_layer, config.deep_layer)
    model.sparse_arch = EmbeddedByName(features)
    model.over_arch.model = model.over_arch.model[:-1]
    return model


# PPNet, the personalised half of PEPNet (arXiv 2302.01115).
#
# Shapes: B rows, F embedding features, D width, X dense features, I = X + F D inputs, H width of a layer.


class GateNU(nn.Module):
    """2 sigmoid(W2 relu(W1 x)) (PEPNet, equations 1 and 2, gamma = 2): scales by 0 to 2, 1 where it knows nothing."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layers(x)


def prior_features(priors: Sequence[str], item: Sequence[str]) -> list[str]:
    """Names of features for names of priors: "item" stands for all of an item's features but the pooled histories."""
    target = [name for name in item if not name.startswith("history_")]
    return [name for prior in priors for name in (target if prior == "item" else [prior])]


class PPNet(nn.Module):
    """h_{l+1} = relu(W_l h_l) * GateNU_l([stop_gradient(h_0); priors]), h_0 = [dense; embedded]; logit = w . h_last.

    The priors are some of h_0's features again; through the gates only they learn.
    """

    def __init__(
        self, config: PpnetBackbone, priors: Sequence[str], features: Sequence[str], dim: int, dense_width: int
    ) -> None:
        super().__init__()
        self.priors = [list(features).index(name) for name in priors]
        inputs = dense_width + len(features) * dim
        widths = [inputs, *config.layers]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        gate_inputs = inputs + len(self.priors) * dim
        self.gates = nn.ModuleList(GateNU(gate_inputs, config.gate_hidden, width) for width in config.layers)
        self.logit = nn.Linear(widths[-1], 1)

    def forward(self, dense_BX: Tensor, embedded_BFD: Tensor) -> Tensor:
        """Logits [B, 1]."""
        hidden_BH = inputs_BI = torch.cat([dense_BX, embedded_BFD.flatten(1)], dim=1)
        gate_inputs = torch.cat([inputs_BI.detach(), embedded_BFD[:, self.priors].flatten(1)], dim=1)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            hidden_BH = torch.relu(layer(hidden_BH)) * gate(gate_inputs)
        return self.logit(hidden_BH)


# What stands in TorchRec's models where they look up embeddings: ours are looked up before.
#
# Shapes: B rows, F embedding features, D width.


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
