"""Pooling of a history into one vector for the backbone.

To add one: add its section to sidrec/config/model.py, and here its module and its case in `build_pooling`.

Shapes: B rows, U item bags (bag 0 is empty), T history positions, D width, H hidden width, R rows of a chunk, S seeds,
J routes, K positions of a route.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sidrec.config.model import MeanPooling, PmaPooling, Pooling, RoutesPooling, TargetAttentionPooling
from sidrec.model.fused import ATTENTION
from sidrec.model.history import (
    HistoryIndex,
    items_of_history,
    masked_softmax,
    mean_of_history,
    products_with_history,
    softmax_over_history,
    weighted_sum_of_history,
)


class PooledHistories(nn.ModuleDict):
    """The poolings of one history in several embedding spaces (hid, sid), each with its own parameters.

    names: the spaces, in the order of the pooled embeddings.
    """

    def __init__(self, names: Sequence[str], config: Pooling, dim: int) -> None:
        super().__init__({name: build_pooling(config, dim) for name in names})

    def forward(self, spaces: Mapping[str, tuple[Tensor, Tensor, HistoryIndex]]) -> list[Tensor]:
        """One pooled embedding [B, D] per name. spaces: name -> (items_UD, target_BD, history) of HistoryPooling."""
        return [pooling(*spaces[name]) for name, pooling in self.items()]


def build_pooling(config: Pooling, dim: int) -> "HistoryPooling":
    """The module that `config` names, for embeddings of width `dim`."""
    match config:
        case MeanPooling():
            return MeanOfHistory()
        case TargetAttentionPooling():
            return TargetAttention(dim, config.hidden, config.softmax)
        case PmaPooling():
            return PoolingByAttention(config, dim)
        case RoutesPooling():
            return RoutesAttention(len(config.routes), dim)


class HistoryPooling(nn.Module):
    """Pools the embeddings of each row's history. Base class."""

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        """Returns [B, D]; zeros for an empty history.

        items_UD: embeddings of the item bags; zero for bags that are not valid, such as bag 0, where padding points.
        target_BD: the target's embedding in the same space.
        """
        raise NotImplementedError


class MeanOfHistory(HistoryPooling):
    """The mean over the valid positions."""

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        return mean_of_history(items_UD, history)


class TargetAttention(HistoryPooling):
    """DIN's local activation unit (arXiv 1706.06978, equation 3).

    sum_t a_t h_t with a_t = MLP([h_t; e; h_t - e; h_t * e]), history item h_t and target e. PReLU between layers;
    with `softmax`, a softmax over the valid positions.
    """

    def __init__(self, dim: int, hidden: Sequence[int], softmax: bool) -> None:
        super().__init__()
        widths = [4 * dim, *hidden]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.layers.append(nn.Linear(widths[-1], 1, bias=not softmax))  # a softmax cancels a bias
        self.slopes = nn.ParameterList(torch.full((1,), 0.25) for _ in hidden)
        self.softmax = softmax

    def weights(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        """a_t, [B, T]; 0 at padding."""
        return _weights(items_UD, target_BD, history, self._layers(), list(self.slopes), self.softmax)

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        return _locally_activated(items_UD, target_BD, history, self._layers(), list(self.slopes), self.softmax)

    def _layers(self) -> "Layers":
        return [list(layer.parameters()) for layer in self.layers]


Layers = Sequence[Sequence[Tensor]]  # weight and, if there is one, bias of each layer


@fx.wrap  # fx cannot trace a choice by the history's paths
def _locally_activated(
    items_UD: Tensor,
    target_BD: Tensor,
    history: HistoryIndex,
    layers: Layers,
    slopes: Sequence[Tensor],
    softmax: bool,
) -> Tensor:
    if history.paths.regions == "none":
        weight_BT = _weights(items_UD, target_BD, history, layers, slopes, softmax)
        return weighted_sum_of_history(items_UD, weight_BT, history)
    parameters = [parameter for layer in layers for parameter in layer]
    return _Attended.apply(history, items_UD, target_BD, *parameters, *slopes)  # type: ignore[no-untyped-call]


def _weights(
    items_UD: Tensor,
    target_BD: Tensor,
    history: HistoryIndex,
    layers: Layers,
    slopes: Sequence[Tensor],
    softmax: bool,
) -> Tensor:
    score_BT = _scores(items_UD, target_BD, history, layers, slopes)
    return softmax_over_history(score_BT, history) if softmax else score_BT.masked_fill(~history.valid_BT, 0.0)


class _Attended(torch.autograd.Function):
    """Attention as a region. Only the sum of the positions' gradients by item is not in it."""

    @staticmethod
    def forward(ctx: Any, history: HistoryIndex, items_UD: Tensor, target_BD: Tensor, *parameters: Tensor) -> Tensor:
        ctx.history = history
        ctx.save_for_backward(items_UD, target_BD, *parameters)
        inputs = (items_UD, history.bag_BT, history.valid_BT, target_BD, *parameters)
        return ATTENTION.forward(history.paths.regions, *inputs)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        items_UD, *others = ctx.saved_tensors
        history: HistoryIndex = ctx.history
        inputs = (items_UD, history.bag_BT, history.valid_BT, *others)
        _, of_items, *of_others = ctx.needs_input_grad
        wanted = (of_items, False, False, *of_others)
        of_items_BTD, _, _, *gradients = ATTENTION.backward(history.paths.regions, inputs, [], [grad_BD], wanted)
        of_items_UD = None
        if of_items_BTD is not None:
            of_items_UD = history.segments(len(items_UD)).sum_of_entries(of_items_BTD.flatten(0, 1))
        return None, of_items_UD, *gradients


@fx.wrap  # fx cannot trace a loop over chunks
def _scores(
    items_UD: Tensor, target_BD: Tensor, history: HistoryIndex, layers: Layers, slopes: Sequence[Tensor]
) -> Tensor:
    """Scores [B, T], `rows` of the history's paths at a time. Backward recomputes a chunk instead of keeping its
    [R, T, H] tensors."""
    if history.paths.inline:
        return _score(items_UD, target_BD, history, layers, slopes)
    rows = history.paths.rows
    if len(target_BD) <= rows:  # the sums of the batch share its segments
        parts = [history]
    else:
        split = zip(torch.split(history.bag_BT, rows), torch.split(history.valid_BT, rows), strict=True)
        parts = [HistoryIndex(bag_RT, valid_RT, paths=history.paths) for bag_RT, valid_RT in split]
    chunks = [
        checkpoint(_score, items_UD, target_RD, part, layers, slopes, use_reentrant=False, preserve_rng_state=False)
        for target_RD, part in zip(torch.split(target_BD, rows), parts, strict=True)
    ]
    return torch.cat(chunks)


def _score(
    items_UD: Tensor, target_RD: Tensor, history: HistoryIndex, layers: Layers, slopes: Sequence[Tensor]
) -> Tensor:
    """Scores [R, T], without the MLP's input [R, T, 4D].

    W [h; e; h - e; h * e] = (W1 + W3 + W4 diag(e)) h + (W2 - W3) e.
    """
    (first_HX, bias_H), *further = layers
    of_item_HD, of_target_HD, of_difference_HD, of_product_HD = first_HX.chunk(4, dim=1)
    matrix_RHD = torch.addcmul(of_item_HD + of_difference_HD, of_product_HD, target_RD.unsqueeze(1))
    shift_RH = functional.linear(target_RD, of_target_HD - of_difference_HD, bias_H)
    items_RTD = items_of_history(items_UD, history)
    hidden_RTH = torch.baddbmm(shift_RH.unsqueeze(1), items_RTD, matrix_RHD.transpose(1, 2))
    for layer, slope in zip(further, slopes, strict=True):
        activated_RTH = torch.lerp(hidden_RTH.relu(), hidden_RTH, slope)  # PReLU, faster than functional.prelu
        hidden_RTH = functional.linear(activated_RTH, *layer)
    return hidden_RTH.squeeze(2)


# Multi-head attention of learned queries, which does not depend on the target.


class PoolingByAttention(HistoryPooling):
    """Pooling by multi-head attention (PMA; Set Transformer, arXiv 1810.00825), as Meta pools histories of SIDs
    (arXiv 2504.02137, appendix A).

    O = S + softmax(S W_Q (X W_K)^T / sqrt(D)) X W_V over the valid positions, per head; the result is the mean over the
    seeds of O + MLP(O). S [S, D] are learned; X are the history's embeddings plus positions. With `norm`, a layer norm
    precedes the three factors and the MLP. The paper leaves open how one vector is read from the seeds, and seems not
    to mask padding; mean and mask are ours [I].
    """

    def __init__(self, config: PmaPooling, dim: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.seeds_SD = nn.Parameter(torch.randn(config.seeds, dim) / math.sqrt(dim))
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        hidden = config.hidden or 4 * dim
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        norms = [nn.LayerNorm(dim) if config.norm else nn.Identity() for _ in range(3)]
        self.seed_norm, self.item_norm, self.mlp_norm = norms
        self.position_scale = nn.Parameter(torch.tensor(POSITION_SCALE)) if config.positions else None

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        items_BTD = items_of_history(items_UD, history)
        if self.position_scale is not None:
            items_BTD = items_BTD + self.position_scale * sinusoids(history.valid_BT, items_BTD)
        items_BTD = self.item_norm(items_BTD)
        query_SD = self.query(self.seed_norm(self.seeds_SD))
        attended_BSD = _attended(query_SD, self.key(items_BTD), self.value(items_BTD), history.valid_BT, self.heads)
        found_BSD = self.seeds_SD + attended_BSD
        pooled_BD = (found_BSD + self.mlp(self.mlp_norm(found_BSD))).mean(dim=1)
        return pooled_BD.masked_fill(~history.valid_BT.any(dim=1, keepdim=True), 0.0)


POSITION_SCALE = 0.1
"""Initial factor of the positions, whose entries are up to 1; an untrained table's are far smaller [I]."""


@fx.wrap  # fx cannot trace a factory that reads sizes
def sinusoids(valid_BT: Tensor, like_BTD: Tensor) -> Tensor:
    """Sinusoidal positions (arXiv 1706.03762) [B, T, D], counted back from the latest valid item [I].

    like_BTD: of their width and type.
    """
    dim = like_BTD.shape[2]
    after_BT = valid_BT.flip(1).cumsum(1).flip(1) - valid_BT.long()  # valid positions after this one
    rate_F = torch.exp(torch.arange(0, dim, 2, device=like_BTD.device) * (-math.log(10_000.0) / dim))
    angle_BTF = after_BT.unsqueeze(2) * rate_F
    return torch.stack([angle_BTF.sin(), angle_BTF.cos()], dim=3).flatten(2)[:, :, :dim].to(like_BTD.dtype)


@fx.wrap
def _attended(query_SD: Tensor, key_BTD: Tensor, value_BTD: Tensor, valid_BT: Tensor, heads: int) -> Tensor:
    """Attention of the queries over the valid positions of each row, [B, S, D]; of an empty history anything finite."""
    rows, length, dim = key_BTD.shape
    query_BhSd = query_SD.view(1, -1, heads, dim // heads).transpose(1, 2).expand(rows, -1, -1, -1)
    key_BhTd, value_BhTd = (kv.view(rows, length, heads, -1).transpose(1, 2) for kv in (key_BTD, value_BTD))
    seen_B11T = (valid_BT | ~valid_BT.any(dim=1, keepdim=True))[:, None, None]
    attended = functional.scaled_dot_product_attention(query_BhSd, key_BhTd, value_BhTd, attn_mask=seen_B11T)
    return attended.transpose(1, 2).flatten(2)


# Routes through a long history.


class RoutesAttention(HistoryPooling):
    """Target attention within every route of a history, then among the routes [I], after R2LED (arXiv 2602.06622).

    R2LED's paper is public as an abstract only; the design is ours. The loader has selected the positions
    (`sidrec.data.history_routes`): J routes of K each. With a target e and items h_t, all scores over sqrt(D):
    a_t = softmax over the route of (W_q e) . (W_k h_t), r_j = sum over route j of a_t h_t, and the result is
    sum_j softmax_j((W_q' e) . (W_k' r_j)) r_j over routes that are not empty.
    """

    def __init__(self, routes: int, dim: int) -> None:
        super().__init__()
        self.routes = routes
        self.query, self.key = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.route_query, self.route_key = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.scale = 1 / math.sqrt(dim)

    def weights(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        """The weight of every position in the result, [B, T]; 0 at padding; they sum to 1."""
        score_BT = products_with_history(self.key(items_UD), self.query(target_BD), history) * self.scale
        # (W_q' e) . (W_k' r_j) = sum_t a_t (W_q' e) . (W_k' h_t): no r_j is needed
        route_BT = products_with_history(self.route_key(items_UD), self.route_query(target_BD), history) * self.scale
        return _route_weights(score_BT, route_BT, history.valid_BT, self.routes)

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        return weighted_sum_of_history(items_UD, self.weights(items_UD, target_BD, history), history)


@fx.wrap
def _route_weights(score_BT: Tensor, route_BT: Tensor, valid_BT: Tensor, routes: int) -> Tensor:
    score_BJK, route_BJK, valid_BJK = (found.unflatten(1, (routes, -1)) for found in (score_BT, route_BT, valid_BT))
    weight_BJK = masked_softmax(score_BJK, valid_BJK)
    share_BJ = masked_softmax((weight_BJK * route_BJK).sum(dim=2), valid_BJK.any(dim=2))
    return (weight_BJK * share_BJ.unsqueeze(2)).flatten(1)
