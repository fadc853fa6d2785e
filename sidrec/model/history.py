"""Pooling of a history into one vector for the backbone, and the sums and products with histories that it uses.

Shapes: B rows, U item bags (bag 0 is empty), T history positions, P = B T positions in one line, D width, H hidden
width, R rows of a chunk.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sidrec.config.model import MeanPooling, Pooling, TargetAttentionPooling


class PooledHistories(nn.ModuleDict):
    """The poolings of one history in several embedding spaces (hid, sid), each with its own parameters.

    names: the spaces, in the order of the pooled embeddings.
    """

    def __init__(self, names: Sequence[str], config: Pooling, dim: int) -> None:
        super().__init__({name: build_pooling(config, dim) for name in names})

    def forward(self, spaces: Mapping[str, tuple[Tensor, Tensor, "HistoryIndex"]]) -> list[Tensor]:
        """One pooled embedding [B, D] per name. spaces: name -> (items_UD, target_BD, history) of HistoryPooling."""
        return [pooling(*spaces[name]) for name, pooling in self.items()]


def build_pooling(config: Pooling, dim: int) -> "HistoryPooling":
    """The module that `config` names, for embeddings of width `dim`."""
    match config:
        case MeanPooling():
            return MeanOfHistory()
        case TargetAttentionPooling():
            return TargetAttention(dim, config.hidden, config.softmax)


class HistoryPooling(nn.Module):
    """Pools the embeddings of each row's history. Base class."""

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: "HistoryIndex") -> Tensor:
        """Returns [B, D]; zeros for an empty history.

        items_UD: embeddings of the item bags; zero for bags that are not valid, such as bag 0, where padding points.
        target_BD: the target's embedding in the same space.
        """
        raise NotImplementedError


class MeanOfHistory(HistoryPooling):
    """The mean over the valid positions."""

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: "HistoryIndex") -> Tensor:
        return mean_of_history(items_UD, history)


ROWS = 512  # R, rows of which attention scores are computed at a time


class TargetAttention(HistoryPooling):
    """DIN's local activation unit (arXiv 1706.06978, equation 3).

    sum_t a_t h_t with a_t = MLP([h_t; e; h_t - e; h_t * e]), history item h_t and target e. PReLU between layers;
    with `softmax`, a softmax over the valid positions.
    """

    def __init__(self, dim: int, hidden: Sequence[int], softmax: bool, rows: int = ROWS) -> None:
        """rows: of which scores are computed at a time."""
        super().__init__()
        widths = [4 * dim, *hidden]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.layers.append(nn.Linear(widths[-1], 1, bias=not softmax))  # a softmax cancels a bias
        self.slopes = nn.ParameterList(torch.full((1,), 0.25) for _ in hidden)
        self.softmax, self.rows = softmax, rows

    def weights(self, items_UD: Tensor, target_BD: Tensor, history: "HistoryIndex") -> Tensor:
        """a_t, [B, T]; 0 at padding."""
        layers = [list(layer.parameters()) for layer in self.layers]
        score_BT = _scores(items_UD, target_BD, history, layers, list(self.slopes), self.rows)
        if self.softmax:
            return softmax_over_history(score_BT, history)
        return score_BT.masked_fill(~history.valid_BT, 0.0)

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: "HistoryIndex") -> Tensor:
        return weighted_sum_of_history(items_UD, self.weights(items_UD, target_BD, history), history)


Layers = Sequence[Sequence[Tensor]]  # weight and, if there is one, bias of each layer


@fx.wrap  # fx cannot trace a loop over chunks
def _scores(
    items_UD: Tensor, target_BD: Tensor, history: "HistoryIndex", layers: Layers, slopes: Sequence[Tensor], rows: int
) -> Tensor:
    """Scores [B, T], R = `rows` at a time. Backward recomputes a chunk instead of keeping its [R, T, H] tensors."""
    chunks = [
        checkpoint(_score, items_UD, target_RD, bag_RT, layers, slopes, use_reentrant=False, preserve_rng_state=False)
        for target_RD, bag_RT in zip(torch.split(target_BD, rows), torch.split(history.bag_BT, rows), strict=True)
    ]
    return torch.cat(chunks)


def _score(items_UD: Tensor, target_RD: Tensor, bag_RT: Tensor, layers: Layers, slopes: Sequence[Tensor]) -> Tensor:
    """Scores [R, T], without the MLP's input [R, T, 4D].

    W [h; e; h - e; h * e] = (W1 + W3 + W4 diag(e)) h + (W2 - W3) e.
    """
    (first_HX, bias_H), *further = layers
    of_item_HD, of_target_HD, of_difference_HD, of_product_HD = first_HX.chunk(4, dim=1)
    matrix_RHD = torch.addcmul(of_item_HD + of_difference_HD, of_product_HD, target_RD.unsqueeze(1))
    shift_RH = functional.linear(target_RD, of_target_HD - of_difference_HD, bias_H)
    items_RTD = functional.embedding(bag_RT, items_UD)
    hidden_RTH = torch.baddbmm(shift_RH.unsqueeze(1), items_RTD, matrix_RHD.transpose(1, 2))
    for layer, slope in zip(further, slopes, strict=True):
        activated_RTH = torch.lerp(hidden_RTH.relu(), hidden_RTH, slope)  # PReLU, faster than functional.prelu
        hidden_RTH = functional.linear(activated_RTH, *layer)
    return hidden_RTH.squeeze(2)


# Sums and products with histories as a sparse matrix [B, U] over item bags: backward makes no [B, T, D] tensor.
#
# Sums are `embedding_bag`s without a padding index, which is FBGEMM's fast path on CPU. This is exact because bag 0,
# where padding points, holds a zero vector and passes no gradient on: nothing was looked up for it (see Batch).
#
# Each public function calls a private one that is wrapped for fx: TorchRec's pipelines trace the ranker to find its
# embedding collections, and `fx.wrap` acts only on calls from the module that defines the function.


def index_history(history_BT: Tensor) -> "HistoryIndex":
    """The index that the other functions take. Build one per batch: they share its sort."""
    return _index(history_BT)


def mean_of_history(items_UD: Tensor, history: "HistoryIndex") -> Tensor:
    """Mean over the valid positions [B, D]; zeros for an empty history. items_UD: row 0 is zero."""
    return _mean(items_UD, history)


def weighted_sum_of_history(items_UD: Tensor, weight_BT: Tensor, history: "HistoryIndex") -> Tensor:
    """sum_t weight[b, t] * items[bag[b, t]], [B, D]. items_UD: row 0 is zero. weight_BT: 0 at padding."""
    return _weighted_sum(items_UD, weight_BT, history)


def products_with_history(items_UD: Tensor, target_BD: Tensor, history: "HistoryIndex") -> Tensor:
    """target[b] . items[bag[b, t]], [B, T]. items_UD: row 0 is zero, so that padding gives 0."""
    return _products(items_UD, target_BD, history)


def softmax_over_history(score_BT: Tensor, history: "HistoryIndex") -> Tensor:
    """Softmax of the scores at valid positions, [B, T]; 0 at padding, and all 0 for an empty history."""
    lowest = torch.finfo(torch.float32).min  # not -inf, which gives NaN for an empty history
    return score_BT.masked_fill(~history.valid_BT, lowest).softmax(dim=1).masked_fill(~history.valid_BT, 0.0)


def attention_among(attention_BT: Tensor, history: "HistoryIndex", part: "HistoryIndex") -> Tensor:
    """Attention over a history, [B, T], as if `part` were all of it: divided by its sum there."""
    is_whole_B1 = (history.valid_BT == part.valid_BT).all(dim=1, keepdim=True)
    among_BT = attention_BT * part.valid_BT
    sum_B1 = among_BT.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return among_BT / torch.where(is_whole_B1, 1.0, sum_B1)


class HistoryIndex:
    """The histories of a batch as a sparse matrix over item bags.

    bag_BT: item bags, 0 is padding. valid_BT: False at padding. count_B1: valid positions of a row, at least 1.
    """

    def __init__(self, bag_BT: Tensor, valid_BT: Tensor | None = None, whole: "HistoryIndex | None" = None) -> None:
        """valid_BT: None for all positions but padding. whole: the index that this one is a part of."""
        self.bag_BT = bag_BT
        self.valid_BT = bag_BT > 0 if valid_BT is None else valid_BT
        self.count_B1 = self.valid_BT.sum(dim=1, keepdim=True).clamp_min(1)
        self._whole = whole

    def where(self, valid_BT: Tensor) -> "HistoryIndex":
        """The same histories with fewer valid positions; the others are as padding. Shares the sort.

        Sums over it take embeddings that are zero at the other positions.
        """
        return HistoryIndex(self.bag_BT, valid_BT, self)

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Sorted bags and their positions, int32 [P] and int64 [P]; for backward, where all sums share them."""
        if self._whole is not None:
            return self._whole._sorted
        return self.bag_BT.flatten().int().sort()  # sorts in half the time of int64

    def sum(self, items_UD: Tensor, weight_BT: Tensor | None = None) -> Tensor:
        """sum_t weight[b, t] * items[bag[b, t]]: [B, D]."""
        return functional.embedding_bag(self.bag_BT, items_UD, mode="sum", per_sample_weights=weight_BT)

    def products(self, items_UD: Tensor, rows_BD: Tensor) -> Tensor:
        """rows[b] . items[bag[b, t]]: [B, T]."""
        return torch.bmm(functional.embedding(self.bag_BT, items_UD), rows_BD.unsqueeze(2)).squeeze(2)

    def transposed_sum(self, rows_BD: Tensor, bags: int, weight_BT: Tensor | None = None) -> Tensor:
        """The transposed matrix times rows: sum of weight[b, t] * rows[b] over the positions of each bag, [U, D]."""
        bag_P, position_P = self._sorted
        row_P = position_P.div(self.bag_BT.shape[1], rounding_mode="floor")
        first_U = torch.searchsorted(bag_P, torch.arange(bags, dtype=bag_P.dtype, device=bag_P.device))
        weight_P = None if weight_BT is None else weight_BT.flatten().index_select(0, position_P)
        return functional.embedding_bag(row_P, rows_BD, first_U, mode="sum", per_sample_weights=weight_P)


@fx.wrap
def _index(history_BT: Tensor) -> HistoryIndex:
    return HistoryIndex(history_BT)


@fx.wrap
def _mean(items_UD: Tensor, history: HistoryIndex) -> Tensor:
    mean_BD: Tensor = _Mean.apply(items_UD, history)  # type: ignore[no-untyped-call]
    return mean_BD


@fx.wrap
def _weighted_sum(items_UD: Tensor, weight_BT: Tensor, history: HistoryIndex) -> Tensor:
    sum_BD: Tensor = _WeightedSum.apply(items_UD, weight_BT, history)  # type: ignore[no-untyped-call]
    return sum_BD


@fx.wrap
def _products(items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
    products_BT: Tensor = _Products.apply(items_UD, target_BD, history)  # type: ignore[no-untyped-call]
    return products_BT


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, items_UD: Tensor, history: HistoryIndex) -> Tensor:
        ctx.history, ctx.bags = history, len(items_UD)
        return history.sum(items_UD) / history.count_B1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor, None]:
        return ctx.history.transposed_sum(grad_BD / ctx.history.count_B1, ctx.bags), None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, items_UD: Tensor, weight_BT: Tensor, history: HistoryIndex) -> Tensor:
        ctx.save_for_backward(items_UD, weight_BT)
        ctx.history = history
        return history.sum(items_UD, weight_BT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor, Tensor, None]:
        items_UD, weight_BT = ctx.saved_tensors
        history: HistoryIndex = ctx.history
        return history.transposed_sum(grad_BD, len(items_UD), weight_BT), history.products(items_UD, grad_BD), None


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        ctx.save_for_backward(items_UD, target_BD)
        ctx.history = history
        return history.products(items_UD, target_BD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BT: Tensor) -> tuple[Tensor, Tensor, None]:
        items_UD, target_BD = ctx.saved_tensors
        history: HistoryIndex = ctx.history
        return history.transposed_sum(target_BD, len(items_UD), grad_BT), history.sum(items_UD, grad_BT), None
