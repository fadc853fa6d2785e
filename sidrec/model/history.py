"""Histories of a batch as a sparse matrix over item bags: sums of their embeddings, and products with them.

Shapes: B rows, U item bags (bag 0 is empty), T history positions, P = B T positions in one line, D width.
"""

from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sidrec.model.fused import PRODUCTS


class Paths(NamedTuple):
    """How the operators of a batch run on a kind of device.

    rows: rows that pass through a chain of operators at a time. On a CPU a chunk stays in the cache. On a GPU each
    operator is a launch, and memory alone bounds the chunk.
    balanced: whether sums by item go through `Segments`. A GPU adds the terms of a bag in one thread, and padding or a
    popular item has most of them.
    regions: how chains of operators between large tensors run (`sidrec.model.regions`): one by one, as one operator of
    the same functions, which is for tests, or as one that torch.compile has fused.
    inline: only plain operators, of sizes that may vary, without gradients of our own: for the export of a graph.
    shared: all rows have the history of the first one. With `inline` alone.
    knots: AutoDis is the nearest of its values at the ends of so many equal intervals of [-1, 1]; 0: it is computed.
    With `inline` alone.
    """

    rows: int
    balanced: bool = False
    regions: Literal["none", "plain", "compiled"] = "none"
    inline: bool = False
    shared: bool = False
    knots: int = 0


CPU, GPU = Paths(rows=512), Paths(rows=65_536, balanced=True, regions="compiled")
EXPORT = Paths(rows=1 << 40, inline=True)


def paths_of(device: torch.device) -> Paths:
    """GPU on CUDA, CPU on other devices."""
    return GPU if device.type == "cuda" else CPU


# Sums and products with histories as a sparse matrix [B, U] over item bags: backward makes no [B, T, D] tensor.
#
# Sums are `embedding_bag`s without a padding index, which is FBGEMM's fast path on CPU. This is exact because bag 0,
# where padding points, holds a zero vector and passes no gradient on: nothing was looked up for it (see Batch).
#
# Each public function calls a private one that is wrapped for fx: TorchRec's pipelines trace the ranker to find its
# embedding collections, and `fx.wrap` acts only on calls from the module that defines the function.


def index_history(history_BT: Tensor, paths: Paths | None = None) -> "HistoryIndex":
    """The index that the other functions take. Build one per batch: they share its sort.

    paths: None for those of history_BT's device.
    """
    return _index(history_BT, paths)


def length_of_history(history_BT: Tensor, paths: Paths | None = None) -> Tensor:
    """Positions of each row that hold an item, float32 [B, 1]."""
    return _length(history_BT, paths)


def mean_of_history(items_UD: Tensor, history: "HistoryIndex") -> Tensor:
    """Mean over the valid positions [B, D]; zeros for an empty history. items_UD: row 0 is zero."""
    return _mean(items_UD, history)


def items_of_history(items_UD: Tensor, history: "HistoryIndex") -> Tensor:
    """items[bag[b, t]], [B, T, D]. items_UD: row 0 is zero; it need not get its gradient, which nothing reads."""
    return _items(items_UD, history)


def weighted_sum_of_history(items_UD: Tensor, weight_BT: Tensor, history: "HistoryIndex") -> Tensor:
    """sum_t weight[b, t] * items[bag[b, t]], [B, D]. items_UD: row 0 is zero. weight_BT: 0 at padding."""
    return _weighted_sum(items_UD, weight_BT, history)


def products_with_history(items_UD: Tensor, target_BD: Tensor, history: "HistoryIndex") -> Tensor:
    """target[b] . items[bag[b, t]], [B, T]. items_UD: row 0 is zero, so that padding gives 0."""
    return _products(items_UD, target_BD, history)


def products_with_targets(items_UD: Tensor, target_B: Tensor, history: "HistoryIndex") -> Tensor:
    """items[target[b]] . items[bag[b, t]], [B, T]: `products_with_history` of rows of the same matrix.

    Its backward adds the targets' gradient to the histories'; a lookup's would make one as large of zeros.
    """
    return _products_with_targets(items_UD, target_B, history)


def targets_among(items_UD: Tensor, target_B: Tensor, paths: Paths | None = None) -> tuple[Tensor, Tensor]:
    """items[target[b]], [B, D], and the items, for everything else that reads them.

    Backward adds the targets' gradient to that of everything else; a lookup's would make one as large of zeros.
    """
    found = _targets(items_UD, target_B, paths)
    return found[0], found[1]  # fx cannot trace unpacking


def softmax_over_history(score_BT: Tensor, history: "HistoryIndex") -> Tensor:
    """Softmax of the scores at valid positions, [B, T]; 0 at padding, and all 0 for an empty history."""
    return masked_softmax(score_BT, history.valid_BT)


def masked_softmax(score: Tensor, valid: Tensor) -> Tensor:
    """Softmax over the valid entries of the last dimension; 0 at others, and all 0 where none is valid."""
    lowest = torch.finfo(torch.float32).min  # not -inf, which gives NaN where none is valid
    return score.masked_fill(~valid, lowest).softmax(dim=-1).masked_fill(~valid, 0.0)


def attention_among(attention_BT: Tensor, history: "HistoryIndex", part: "HistoryIndex") -> Tensor:
    """Attention over a history, [B, T], as if `part` were all of it: divided by its sum there."""
    is_whole_B1 = (history.valid_BT == part.valid_BT).all(dim=1, keepdim=True)
    among_BT = attention_BT * part.valid_BT
    sum_B1 = among_BT.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return among_BT / torch.where(is_whole_B1, 1.0, sum_B1)


class HistoryIndex:
    """The histories of a batch as a sparse matrix over item bags.

    bag_BT: item bags, 0 is padding. valid_BT: False at padding; [1, T] where all rows share a history. paths: of the
    device.
    """

    def __init__(
        self,
        bag_BT: Tensor,
        valid_BT: Tensor | None = None,
        whole: "HistoryIndex | None" = None,
        paths: Paths | None = None,
    ) -> None:
        """valid_BT: None for all positions but padding. whole: the index that this one is a part of. paths: None for
        those of bag_BT's device."""
        self.bag_BT = bag_BT
        self.paths = paths_of(bag_BT.device) if paths is None else paths
        self.valid_BT = self.own_BT > 0 if valid_BT is None else valid_BT
        self._whole = whole
        self._segments: Segments | None = None
        self._entries_of: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def own_BT(self) -> Tensor:  # noqa: N802
        """The bags of histories that may differ: [1, T] where all rows share one."""
        return self.bag_BT[:1] if self.paths.shared else self.bag_BT

    @cached_property
    def count_B1(self) -> Tensor:  # noqa: N802
        """Valid positions of a row, at least 1."""
        return self.valid_BT.sum(dim=1, keepdim=True).clamp_min(1)

    def where(self, valid_BT: Tensor) -> "HistoryIndex":
        """The same histories with fewer valid positions; the others are as padding. Shares the sort.

        Sums over it take embeddings that are zero at the other positions.
        """
        return HistoryIndex(self.bag_BT, valid_BT, self, self.paths)

    def emptied(self) -> "HistoryIndex":
        """Histories without items, of the same shape."""
        return HistoryIndex(torch.zeros_like(self.bag_BT), paths=self.paths)

    def shared_by(self, rows: int) -> "HistoryIndex":
        """A history that all rows share, for `rows` rows. Positions that are not valid have the first valid one's bag,
        so that no maximum over the history reads a mask."""
        first_11 = self.valid_BT.long().argmax(dim=1, keepdim=True)
        bag_1T = torch.where(self.valid_BT, self.own_BT, self.own_BT.gather(1, first_11))
        return HistoryIndex(bag_1T.expand(rows, -1), self.valid_BT, paths=self.paths)

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Sorted bags and their positions, int32 [P] and int64 [P]."""
        return self.bag_BT.flatten().int().sort()  # sorts in half the time of int64

    def sum(self, items_UD: Tensor, weight_BT: Tensor | None = None) -> Tensor:
        """sum_t weight[b, t] * items[bag[b, t]]: [B, D]."""
        if self.paths.shared:
            items_TD = functional.embedding(self.bag_BT[0], items_UD)
            return items_TD.sum(dim=0).expand(self.bag_BT.shape[0], -1) if weight_BT is None else weight_BT @ items_TD
        if self.paths.inline:
            items_BTD = functional.embedding(self.bag_BT, items_UD)
            return items_BTD.sum(dim=1) if weight_BT is None else torch.einsum("bt,btd->bd", weight_BT, items_BTD)
        return functional.embedding_bag(self.bag_BT, items_UD, mode="sum", per_sample_weights=weight_BT)

    def products(self, items_UD: Tensor, rows_BD: Tensor) -> Tensor:
        """rows[b] . items[bag[b, t]]: [B, T]."""
        if self.paths.regions != "none":
            return PRODUCTS.forward(self.paths.regions, items_UD, self.bag_BT, rows_BD)[0]
        if self.paths.shared:
            return rows_BD @ functional.embedding(self.bag_BT[0], items_UD).t()
        return torch.bmm(functional.embedding(self.bag_BT, items_UD), rows_BD.unsqueeze(2)).squeeze(2)

    def transposed_sum(self, rows_BD: Tensor, bags: int, weight_BT: Tensor | None = None) -> Tensor:
        """The transposed matrix times rows: sum of weight[b, t] * rows[b] over the positions of each bag, [U, D].

        Bag 0's is of no use, and with balanced paths 0.
        """
        if self.paths.balanced:
            return self.segments(bags).sum(rows_BD, weight_BT)
        first_U, row_P, position_P = self._entries(bags)
        weight_P = None if weight_BT is None else weight_BT.flatten().index_select(0, position_P)
        return functional.embedding_bag(row_P, rows_BD, first_U, mode="sum", per_sample_weights=weight_P)

    def _entries(self, bags: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where each bag begins among the sorted entries, their rows, and their positions; all sums share them."""
        if self._whole is not None:
            return self._whole._entries(bags)
        if self._entries_of is None or len(self._entries_of[0]) != bags:
            bag_P, position_P = self._sorted
            first_U = torch.searchsorted(bag_P, torch.arange(bags, dtype=bag_P.dtype, device=bag_P.device))
            self._entries_of = first_U, position_P.div(self.bag_BT.shape[1], rounding_mode="floor"), position_P
        return self._entries_of

    def segments(self, bags: int) -> "Segments":
        """The valid positions of each of `bags` bags; all sums of a batch share them."""
        if self._whole is not None:
            return self._whole.segments(bags)
        if self._segments is None or self._segments.count != bags:
            self._segments = Segments(torch.where(self.bag_BT > 0, self.bag_BT, bags), bags)
        return self._segments


PIECE = 128


class Segments:
    """Sums over the entries of a matrix [B, T] by segment, in which no thread of a GPU adds many terms.

    `embedding_bag` adds the terms of a bag one after another. Here the entries, sorted by segment, are cut into pieces
    of at most `piece` entries, and each segment adds the sums of its pieces. Entries of no segment come last; their
    pieces are added to bags of their own, which are left out. No size depends on the entries, so that the host need
    not wait for the device; sums are added in the same order each time.

    Shapes: P = B T entries in one line, C segments, N pieces, M bags of pieces, R rows of values, D width.
    """

    def __init__(self, segment_BT: Tensor, count: int, piece: int = PIECE) -> None:
        """segment_BT: the segment of each entry in [0, count), or `count` for none. count: C."""
        self.count = count
        entries, device = segment_BT.numel(), segment_BT.device
        sorted_P, self._entry_P = segment_BT.flatten().int().sort()
        self._row_P = self._entry_P.div(max(1, segment_BT.shape[1]), rounding_mode="floor")
        numbers = torch.arange(count + 1, dtype=torch.int32, device=device)
        first_of_segment = torch.searchsorted(sorted_P, numbers)  # [C + 1]; the last: of the entries of no segment
        start_C, stop_C = first_of_segment[:-1], first_of_segment[1:]
        # An empty segment would begin a piece where the next one does, which would have to add it.
        start_C = torch.where(start_C == stop_C, entries, start_C)
        cuts = [start_C, first_of_segment[-1:], torch.arange(0, entries, piece, device=device)]
        self.first_N, _ = torch.cat(cuts).sort()
        first_piece = torch.searchsorted(self.first_N, first_of_segment)  # [C + 1]
        self._piece_N = torch.arange(len(self.first_N), device=device)
        others = torch.maximum(self._piece_N[::piece], first_piece[-1])
        self.first_M = torch.cat([first_piece[:-1], others])

    def sum(self, rows_BD: Tensor, weight_BT: Tensor | None = None) -> Tensor:
        """Sum of weight[b, t] * rows[b] over the entries (b, t) of each segment, [C, D]."""
        weight_P = None if weight_BT is None else weight_BT.flatten().index_select(0, self._entry_P)
        return self._sum(self._row_P, rows_BD, weight_P)

    def sum_of_entries(self, values_PD: Tensor) -> Tensor:
        """Sum of the values of each segment's entries, [C, D]. values_PD: in the order of the flattened matrix."""
        return self._sum(self._entry_P, values_PD, None)

    def _sum(self, index_P: Tensor, values_RD: Tensor, weight_P: Tensor | None) -> Tensor:
        pieces_ND = functional.embedding_bag(index_P, values_RD, self.first_N, mode="sum", per_sample_weights=weight_P)
        return functional.embedding_bag(self._piece_N, pieces_ND, self.first_M, mode="sum")[: self.count]


@fx.wrap
def _index(history_BT: Tensor, paths: Paths | None) -> HistoryIndex:
    return HistoryIndex(history_BT, paths=paths)


@fx.wrap
def _length(history_BT: Tensor, paths: Paths | None) -> Tensor:
    if paths is not None and paths.shared:
        return (history_BT[:1] > 0).sum(dim=1, keepdim=True).float().expand(history_BT.shape[0], -1)
    return (history_BT > 0).sum(dim=1, keepdim=True).float()


@fx.wrap
def _mean(items_UD: Tensor, history: HistoryIndex) -> Tensor:
    if history.paths.inline:
        return history.sum(items_UD) / history.count_B1
    mean_BD: Tensor = _Mean.apply(items_UD, history)  # type: ignore[no-untyped-call]
    return mean_BD


@fx.wrap
def _items(items_UD: Tensor, history: HistoryIndex) -> Tensor:
    if history.paths.shared:
        return functional.embedding(history.bag_BT[0], items_UD).expand(history.bag_BT.shape[0], -1, -1)
    if not history.paths.balanced:
        return functional.embedding(history.bag_BT, items_UD)
    items_BTD: Tensor = _Items.apply(items_UD, history)  # type: ignore[no-untyped-call]
    return items_BTD


@fx.wrap
def _weighted_sum(items_UD: Tensor, weight_BT: Tensor, history: HistoryIndex) -> Tensor:
    if history.paths.inline:
        return history.sum(items_UD, weight_BT)
    sum_BD: Tensor = _WeightedSum.apply(items_UD, weight_BT, history)  # type: ignore[no-untyped-call]
    return sum_BD


@fx.wrap
def _products(items_UD: Tensor, target_BD: Tensor, history: HistoryIndex) -> Tensor:
    if history.paths.inline:
        return history.products(items_UD, target_BD)
    products_BT: Tensor = _Products.apply(items_UD, target_BD, history)  # type: ignore[no-untyped-call]
    return products_BT


@fx.wrap
def _targets(items_UD: Tensor, target_B: Tensor, paths: Paths | None) -> tuple[Tensor, Tensor]:
    if paths is not None and paths.inline:
        return functional.embedding(target_B, items_UD), items_UD
    found: tuple[Tensor, Tensor] = _Targets.apply(items_UD, target_B)  # type: ignore[no-untyped-call]
    return found


@fx.wrap
def _products_with_targets(items_UD: Tensor, target_B: Tensor, history: HistoryIndex) -> Tensor:
    if history.paths.inline:
        return history.products(items_UD, functional.embedding(target_B, items_UD))
    products_BT: Tensor = _ProductsWithTargets.apply(items_UD, target_B, history)  # type: ignore[no-untyped-call]
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


class _Items(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, items_UD: Tensor, history: HistoryIndex) -> Tensor:
        ctx.history, ctx.bags = history, len(items_UD)
        return functional.embedding(history.bag_BT, items_UD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, None]:
        return ctx.history.segments(ctx.bags).sum_of_entries(grad_BTD.flatten(0, 1)), None


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


class _Targets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, items_UD: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(target_B)
        return functional.embedding(target_B, items_UD), items_UD.view_as(items_UD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_target_BD: Tensor, of_items_UD: Tensor) -> tuple[Tensor, None]:
        (target_B,) = ctx.saved_tensors
        return _add_targets(of_items_UD, target_B, of_target_BD), None


class _ProductsWithTargets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, items_UD: Tensor, target_B: Tensor, history: HistoryIndex) -> Tensor:
        target_BD = functional.embedding(target_B, items_UD)
        ctx.save_for_backward(items_UD, target_B, target_BD)
        ctx.history = history
        return history.products(items_UD, target_BD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BT: Tensor) -> tuple[Tensor, None, None]:
        items_UD, target_B, target_BD = ctx.saved_tensors
        history: HistoryIndex = ctx.history
        of_items_UD = history.transposed_sum(target_BD, len(items_UD), grad_BT)
        return _add_targets(of_items_UD, target_B, history.sum(items_UD, grad_BT)), None, None


def _add_targets(of_items_UD: Tensor, target_B: Tensor, of_target_BD: Tensor) -> Tensor:
    """The items' gradient, in place, with that of targets. A GPU sorts the targets first: it adds in the same order
    each time."""
    return of_items_UD.index_put_((target_B,), of_target_BD, accumulate=True)
