"""Backbones: the modules that map dense features and embeddings to a logit.

TorchRec's DLRM family and DeepFM, and PPNet. To add one: add its section to sidrec/config/model.py, and here its module
and its case in `build_backbone`.

Shapes: B rows, F embedding features, D width, X dense features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

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
    """The module of the recipe's section. It maps (dense [B, X], embedded [B, F, D]) to logits [B, 1].

    item, context: names of the F embeddings: first those of the item representation, then the context columns.
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


# Which input each column of a weight reads, so that a model with more inputs can start from one with fewer
# (`sidrec.train.growth`).

Name = frozenset[str | int]
"""An input: a dense feature, a feature and its coordinate, or two features for their product."""


@dataclass(frozen=True)
class NamedInputs:
    """A weight whose size along `axis` depends on the inputs; `names`: what each place along it belongs to.

    zero: whether places of new inputs begin at 0, so that the output does not change; else at their initial values.
    """

    weight: str
    axis: int
    names: tuple[Name, ...]
    zero: bool = True


def named_inputs(
    config: Backbone, item: Sequence[str], context: Sequence[str], dense: Sequence[str], dim: int
) -> Iterator[NamedInputs]:
    """All weights of `build_backbone`'s module whose sizes depend on its inputs. dense: names of the dense features."""
    features, columns = [*item, *context], tuple(frozenset((name,)) for name in dense)
    vectors = _coordinates([_DENSE, *features], dim)
    match config:
        case DeepFmBackbone():
            yield NamedInputs("dense_arch.model.0.weight", 1, columns)
            yield NamedInputs("inter_arch.deep_fm.dense_module.0.weight", 1, vectors)
        case PpnetBackbone():
            inputs = (*columns, *_coordinates(features, dim))
            priors = [name | {"prior"} for name in _coordinates(prior_features(config.priors, item), dim)]
            yield NamedInputs("layers.0.weight", 1, inputs)
            for layer in range(len(config.layers)):
                yield NamedInputs(f"gates.{layer}.layers.0.weight", 1, (*inputs, *priors))
        case _:
            yield NamedInputs("dense_arch.model._mlp.0._linear.weight", 1, columns)
            yield from _named_interactions(config, features, vectors, dim)


_DENSE = "dense"  # the output of the dense arch, an input of the interactions
_OVER = "over_arch.model.0._mlp.0._linear.weight"


def _named_interactions(
    config: DlrmBackbone | DlrmDcnBackbone | DlrmProjectionBackbone,
    features: Sequence[str],
    vectors: tuple[Name, ...],
    dim: int,
) -> Iterator[NamedInputs]:
    match config:
        case DlrmBackbone():
            products = map(frozenset, combinations([_DENSE, *features], 2))
            yield NamedInputs(_OVER, 1, (*_coordinates([_DENSE], dim), *products))
        case DlrmDcnBackbone():
            for layer in range(config.cross_layers):
                yield NamedInputs(f"inter_arch.crossnet.V_kernels.{layer}", 1, vectors)
                yield NamedInputs(f"inter_arch.crossnet.W_kernels.{layer}", 0, vectors, zero=False)
                yield NamedInputs(f"inter_arch.crossnet.bias.{layer}", 0, vectors, zero=False)
            yield NamedInputs(_OVER, 1, vectors)
        case DlrmProjectionBackbone():
            for branch in (1, 2):
                yield NamedInputs(f"inter_arch.interaction_branch{branch}.model._mlp.0._linear.weight", 1, vectors)


def _coordinates(features: Sequence[str], dim: int) -> tuple[Name, ...]:
    return tuple(frozenset((name, coordinate)) for name in features for coordinate in range(dim))


# TorchRec's models. They look up embeddings in their `sparse_arch`; sidrec looks them up before, so `sparse_arch` is
# replaced by a module that passes them on.


def build_dlrm(
    config: DlrmBackbone | DlrmDcnBackbone | DlrmProjectionBackbone, features: Sequence[str], dim: int, dense_width: int
) -> DLRM:
    """TorchRec's DLRM, DLRM_DCN or DLRM_Projection, without embedding tables."""
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


def build_deepfm(config: DeepFmBackbone, features: Sequence[str], dim: int, dense_width: int) -> SimpleDeepFMNN:
    """TorchRec's SimpleDeepFMNN without embedding tables and without its last sigmoid."""
    model = SimpleDeepFMNN(dense_width, tables_like(features, dim), config.dense_layer, config.deep_layer)
    model.sparse_arch = EmbeddedByName(features)
    model.over_arch.model = model.over_arch.model[:-1]
    return model


def tables_like(features: Sequence[str], dim: int) -> EmbeddingBagCollection:
    """A collection on `meta` from which TorchRec's constructors read the number of features and their width."""
    return embedding_tables(one_feature_each(dict.fromkeys(features, 1)), dim)


class EmbeddedFeatures(nn.Module):
    """In place of the DLRM family's SparseArch: passes [B, F, D] on."""

    def __init__(self, features: Sequence[str], dim: int) -> None:
        super().__init__()
        self.F = len(features)
        self.D = dim
        self.sparse_feature_names = list(features)

    def forward(self, embedded_BFD: Tensor) -> Tensor:
        return embedded_BFD


class EmbeddedByName(nn.Module):
    """In place of DeepFM's SparseArch: splits [B, F, D] to name -> [B, D]."""

    def __init__(self, features: Sequence[str]) -> None:
        super().__init__()
        self.features = list(features)

    def forward(self, embedded_BFD: Tensor) -> dict[str, Tensor]:
        return _by_name(self.features, embedded_BFD)


@fx.wrap  # fx cannot trace it. One unbind: the gradient of a slice is as wide as the whole
def _by_name(features: Sequence[str], embedded_BFD: Tensor) -> dict[str, Tensor]:
    return dict(zip(features, embedded_BFD.unbind(dim=1), strict=True))


# PPNet.
#
# Shapes: I = X + F D inputs, H width of a layer.


class PPNet(nn.Module):
    """PPNet, the personalised half of PEPNet (arXiv 2302.01115).

    h_{l+1} = relu(W_l h_l) * GateNU_l([stop_gradient(h_0); priors]), h_0 = [dense; embedded]; logit = w . h_last.
    The priors are embeddings that h_0 also holds; gates pass their gradient to the priors alone.
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


class GateNU(nn.Module):
    """2 sigmoid(W2 relu(W1 x)) (PEPNet, equations 1 and 2, gamma = 2): a scale in (0, 2)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layers(x)


def prior_features(priors: Sequence[str], item: Sequence[str]) -> list[str]:
    """Features of the priors: "item" becomes all item features except pooled histories."""
    target = [name for name in item if not name.startswith("history_")]
    return [name for prior in priors for name in (target if prior == "item" else [prior])]
