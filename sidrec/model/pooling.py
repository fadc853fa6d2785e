"""From a history to the one vector of it that the backbone sees; every pooled embedding has a module of its own.

Shapes: B rows, U item bags, T history positions, D width, H hidden, R rows of a piece.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sidrec.config.pooling import MeanPooling, Pooling, TargetAttentionPooling
from sidrec.model.history import HistoryIndex, mean_of_history, softmax_over_history, weighted_sum_of_history

ROWS = 512  # rows of a piece


class HistoryPooling(nn.Module):
    """Maps embeddings of item bags, the target's embedding in the same space, and the histories to [B, D].

    items_UD: row 0, where padding points, is zero. An empty history gives zeros.
    """

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        raise NotImplementedError


class MeanOfHistory(HistoryPooling):
    """The mean over the valid positions."""

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        return mean_of_history(items_UD, history)


class TargetAttention(HistoryPooling):
    """DIN's local activation (arXiv 1706.06978, equation 3): sum_t a_t h_t, where a_t = MLP([h_t; e; h_t - e; h_t * e])
    with the target's embedding e, PReLU between layers, and a softmax over the valid positions only where asked for.
    """

    def __init__(self, dim: int, hidden: Sequence[int], softmax: bool) -> None:
        super().__init__()
        widths = [4 * dim, *hidden]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.layers.append(nn.Linear(widths[-1], 1, bias=not softmax))  # a softmax would not feel it
        self.slopes = nn.ParameterList(torch.full((1,), 0.25) for _ in hidden)
        self.softmax = softmax

    def weights(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        """a_t, [B, T]; 0 at padding."""
        layers = [list(layer.parameters()) for layer in self.layers]
        score_BT = _scores(items_UD, target_BD, history, layers, list(self.slopes))
        if self.softmax:
            return softmax_over_history(score_BT, history)
        return score_BT.masked_fill(~history.valid_BT, 0.0)

    def forward(self, items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
        return weighted_sum_of_history(items_UD, self.weights(items_UD, target_BD, history), history)


Layers = Sequence[Sequence[Tensor]]  # weight and, where it has one, bias of each


@fx.wrap  # the pipelines trace the ranker, and fx cannot look into a loop over pieces
def _scores(
    items_UD: Tensor, target_BD: Tensor, history: HistoryIndex, layers: Layers, slopes: Sequence[Tensor]
) -> Tensor:
    """Scores [B, T], some rows at a time; backward computes a piece again instead of keeping its [R, T, H] tensors."""
    pieces = [
        checkpoint(_score, items_UD, target_RD, bag_RT, layers, slopes, use_reentrant=False, preserve_rng_state=False)
        for target_RD, bag_RT in zip(torch.split(target_BD, ROWS), torch.split(history.bag_BT, ROWS), strict=True)
    ]
    return torch.cat(pieces)


def _score(items_UD: Tensor, target_RD: Tensor, bag_RT: Tensor, layers: Layers, slopes: Sequence[Tensor]) -> Tensor:
    """The MLP without its input [R, T, 4D]: W [h; e; h - e; h * e] = (W1 + W3 + W4 diag(e)) h + (W2 - W3) e."""
    (first_HX, bias_H), *further = layers
    of_item_HD, of_target_HD, of_difference_HD, of_product_HD = first_HX.chunk(4, dim=1)
    matrix_RHD = torch.addcmul(of_item_HD + of_difference_HD, of_product_HD, target_RD.unsqueeze(1))
    shift_RH = functional.linear(target_RD, of_target_HD - of_difference_HD, bias_H)
    items_RTD = functional.embedding(bag_RT, items_UD)
    hidden_RTH = torch.baddbmm(shift_RH.unsqueeze(1), items_RTD, matrix_RHD.transpose(1, 2))
    for layer, slope in zip(further, slopes, strict=True):
        activated_RTH = torch.lerp(hidden_RTH.relu(), hidden_RTH, slope)  # PReLU; functional.prelu takes a fifth longer
        hidden_RTH = functional.linear(activated_RTH, *layer)
    return hidden_RTH.squeeze(2)


def build_pooling(config: Pooling, dim: int) -> HistoryPooling:
    """The module that `config` names, for embeddings of width `dim`."""
    match config:
        case MeanPooling():
            return MeanOfHistory()
        case TargetAttentionPooling():
            return TargetAttention(dim, config.hidden, config.softmax)


class PooledHistories(nn.ModuleDict):
    """Name of a space (hid, sid) -> the pooling of its history; each has its own parameters.

    names: the spaces, in the order of the pooled embeddings.
    """

    def __init__(self, names: Sequence[str], config: Pooling, dim: int) -> None:
        super().__init__({name: build_pooling(config, dim) for name in names})

    def forward(self, spaces: Mapping[str, tuple[Tensor, Tensor]], history: HistoryIndex) -> list[Tensor]:
        """One pooled embedding [B, D] per name. spaces: name -> what `HistoryPooling` takes of it, items and target."""
        return [pooling(*spaces[name], history) for name, pooling in self.items()]
