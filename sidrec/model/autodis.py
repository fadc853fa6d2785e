"""Max and mean over the history of functions of similarities, and those of AutoDis in four ways.

Exactly, a few rows at a time; between nodes, as exact as float32; interpolated between points of a coarser grid, which
a recipe asks for; and, in an exported graph, from a table.

Shapes: B rows, T history positions, H soft buckets, A width of a meta-embedding, M points of a grid.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sidrec.model.fused import interpolated
from sidrec.model.history import Paths, Segments, paths_of


def masked_max_and_mean(values_BTA: Tensor, valid_BT: Tensor) -> Tensor:
    """[max_t; mean_t] over valid positions, [B, 2A]; zeros where no position is valid."""
    valid_BT1 = valid_BT.unsqueeze(2)
    count_B1 = valid_BT.sum(dim=1, keepdim=True)
    highest_BA = values_BTA.masked_fill(~valid_BT1, -torch.inf).amax(dim=1).masked_fill(count_B1 == 0, 0.0)
    mean_BA = (values_BTA * valid_BT1).sum(dim=1) / count_B1.clamp_min(1)
    return torch.cat([highest_BA, mean_BA], dim=1)


# AutoDis and its pooling, a few rows at a time. A plain chain of operators would write and read [B, T, H] and [B, T, A]
# tensors a dozen times. Here a chunk of rows passes through all of them while it is in the cache, and backward computes
# the chunk again instead of keeping it. The rows of a chunk come last, so that every operator runs along them.
#
# Shapes: R rows of a chunk, P = T R its positions.


def autodis_max_and_mean(
    x_BT: Tensor, valid_BT: Tensor, slope_2H: Tensor, meta_HA: Tensor, paths: Paths | None = None
) -> Tensor:
    """[max_t; mean_t] of a_t = softmax(u_t) ME over the valid positions, [B, 2A]; zeros where none is valid.

    slope_2H: u = x slope[0] where x >= 0, and -x slope[1] where x < 0. Equal maxima share their gradient. For many x
    on a CPU, which are in [-1, 1] then but for rounding, between nodes. paths: R is its `rows`; None for those of the
    tensors' device.
    """
    return _pooled(x_BT, valid_BT, slope_2H, meta_HA, paths)


@fx.wrap  # TorchRec's pipelines trace the ranker, and fx cannot trace an autograd function
def _pooled(x_BT: Tensor, valid_BT: Tensor, slope_2H: Tensor, meta_HA: Tensor, paths: Paths | None) -> Tensor:
    used = paths or paths_of(x_BT.device)
    if used.inline:
        # Not the powers of two of the region's function: onnxruntime takes twice as long for them as for a softmax
        # (22 ms and 10 ms for 2,000 candidates with 50 history positions, one thread).
        magnitude_BT2 = torch.stack([x_BT.clamp_min(0), x_BT.neg().clamp_min(0)], dim=2)
        return masked_max_and_mean(torch.softmax(magnitude_BT2 @ slope_2H, dim=2) @ meta_HA, valid_BT)
    pooled_B2A: Tensor
    if intervals := intervals_between_nodes(x_BT, slope_2H):
        pooled_B2A = _BetweenNodes.apply(x_BT, valid_BT, slope_2H, meta_HA, intervals)  # type: ignore[no-untyped-call]
    else:
        pooled_B2A = _MaxAndMean.apply(x_BT, valid_BT, slope_2H, meta_HA, used.rows)  # type: ignore[no-untyped-call]
    return pooled_B2A


class _MaxAndMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BT: Tensor, valid_BT: Tensor, slope_2H: Tensor, meta_HA: Tensor, chunk: int) -> Tensor:
        pooled_B2A = x_BT.new_empty(len(x_BT), 2 * meta_HA.shape[1])
        for rows, (x_TR, valid_TR) in _chunks(chunk, x_BT, valid_BT):
            embedded_ATR = _embed(x_TR, slope_2H, meta_HA).embedded_ATR
            count_R = valid_TR.sum(dim=0)
            minus_inf_at_padding_TR = x_TR.new_zeros(x_TR.shape).masked_fill_(~valid_TR, -torch.inf)
            highest_AR = (embedded_ATR + minus_inf_at_padding_TR).amax(dim=1).masked_fill_(count_R == 0, 0)
            mean_AR = embedded_ATR.mul_(valid_TR.to(x_TR.dtype) / count_R.clamp_min(1)).sum(dim=1)
            pooled_B2A[rows] = torch.cat([highest_AR, mean_AR]).t()
        ctx.rows = chunk
        ctx.save_for_backward(x_BT, valid_BT, slope_2H, meta_HA, pooled_B2A)
        return pooled_B2A

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B2A: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        x_BT, valid_BT, slope_2H, meta_HA, pooled_B2A = ctx.saved_tensors
        x_grad_BT = torch.empty_like(x_BT)
        slope_grad_2H, meta_grad_HA = torch.zeros_like(slope_2H), torch.zeros_like(meta_HA)
        width = meta_HA.shape[1]
        plus_one_HA = torch.cat([meta_HA, torch.ones_like(meta_HA[:, :1])], dim=1)
        for rows, (x_TR, valid_TR) in _chunks(ctx.rows, x_BT, valid_BT):
            chunk = _embed(x_TR, slope_2H, meta_HA)
            grad_AP = _embedded_grad(chunk, valid_TR, pooled_B2A[rows, :width].t(), grad_B2A[rows].t()).flatten(1)
            # softmax: du = p (ME g - a . g), with p = share / total
            inner_1P = (chunk.embedded_ATR.flatten(1) * grad_AP).sum(dim=0, keepdim=True)
            grad_AP = torch.cat([grad_AP, -inner_1P]).div_(chunk.total_P)
            meta_grad_HA += torch.mm(chunk.share_HP, grad_AP[:-1].t())
            u_grad_HP = torch.mm(plus_one_HA, grad_AP).mul_(chunk.share_HP)
            slope_grad_2H += torch.mm(chunk.magnitude_2P, u_grad_HP.t())
            positive_P, negative_P = torch.mm(slope_2H, u_grad_HP)
            x_grad_TR = torch.where(x_TR.flatten() >= 0, positive_P, -negative_P).view_as(x_TR)
            x_grad_BT[rows] = x_grad_TR.t()
        return x_grad_BT, None, slope_grad_2H, meta_grad_HA, None


def _embedded_grad(chunk: "_Chunk", valid_TR: Tensor, highest_AR: Tensor, grad_2AR: Tensor) -> Tensor:
    """Gradient of a_t, [A, T, R]: from the maxima, shared among equals, and from the mean; zero at padding."""
    of_max_AR, of_mean_AR = grad_2AR.chunk(2)
    highest_A1R = highest_AR.contiguous().unsqueeze(1)
    valid_TR = valid_TR.to(highest_AR.dtype)
    is_max_ATR = torch.eq(chunk.embedded_ATR, highest_A1R, out=torch.empty_like(chunk.embedded_ATR)).mul_(valid_TR)
    of_max_AR = of_max_AR / is_max_ATR.sum(dim=1).clamp_min_(1)
    of_mean_AR = of_mean_AR / valid_TR.sum(dim=0).clamp_min_(1)
    return is_max_ATR.mul_(of_max_AR.unsqueeze(1)).add_(of_mean_AR.unsqueeze(1)).mul_(valid_TR)


def _chunks(count: int, *tensors_BT: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of `count` rows, and these rows of each tensor as contiguous [T, R]."""
    for first in range(0, len(tensors_BT[0]), count):
        rows = slice(first, first + count)
        yield rows, [tensor_BT[rows].t().contiguous() for tensor_BT in tensors_BT]


class _Chunk(NamedTuple):
    """magnitude_2P: max(x, 0) and max(-x, 0). share_HP: exp(u - max u). total_P: its sum over H.

    embedded_ATR: a = p ME with p = share / total.
    """

    magnitude_2P: Tensor
    share_HP: Tensor
    total_P: Tensor
    embedded_ATR: Tensor


def _embed(x_TR: Tensor, slope_2H: Tensor, meta_HA: Tensor) -> _Chunk:
    x_P = x_TR.flatten()
    magnitude_2P = torch.stack([x_P.clamp_min(0), x_P.neg().clamp_min_(0)])
    below_max_2H = (slope_2H - slope_2H.amax(dim=1, keepdim=True)) / math.log(2)
    share_HP = torch.mm(below_max_2H.t(), magnitude_2P).exp2_()  # on CPU four times as fast as exp
    with_total_HA = torch.cat([meta_HA, torch.ones_like(meta_HA[:, :1])], dim=1)
    sums_AP = torch.mm(with_total_HA.t(), share_HP)
    embedded_AP, total_P = sums_AP[:-1], sums_AP[-1]
    return _Chunk(magnitude_2P, share_HP, total_P, embedded_AP.div_(total_P).view(-1, *x_TR.shape))


# AutoDis between nodes: a(x) is a smooth function of the scalar x on each side of 0, so that four neighbouring nodes
# give it, and its derivative, as exactly as float32 does. About half of the time of the chunks above.
#
# Shapes: N nodes of both sides, R rows of a chunk, P = T R its positions.

INTERVALS_PER_SLOPE = 17
"""With z = x in intervals and s the range of the slopes in one, the error of a cubic is at most .023 s^4 of the values:
3e-7 at 1/17, as much as float32 rounds exponents of the softmax."""
FEWEST_INTERVALS, MOST_INTERVALS = 16, 4096
"""The most are for a range of slopes of 240."""
POSITIONS_PER_NODE = 4
"""With fewer positions, nodes cost more than they save."""
POSITIONS = 1 << 17
"""Of a chunk, so that its [T, R, A] tensors stay in a CPU's last cache."""


def intervals_between_nodes(x_BT: Tensor, slope_2H: Tensor) -> int:
    """Equal intervals of [0, 1] between nodes of x; 0 to compute every x. Reads the slopes, on CPUs alone."""
    most = x_BT.numel() // (2 * POSITIONS_PER_NODE) - 3
    if x_BT.device.type != "cpu" or x_BT.dtype != torch.float32 or most < FEWEST_INTERVALS:
        return 0
    slope_2H = slope_2H.detach()
    slopes = float((slope_2H.amax(dim=1) - slope_2H.amin(dim=1)).max())
    if not slopes * INTERVALS_PER_SLOPE <= MOST_INTERVALS:  # nor if it is NaN
        return 0
    intervals = 1 << math.ceil(math.log2(max(FEWEST_INTERVALS, slopes * INTERVALS_PER_SLOPE)))
    return intervals if intervals <= most else 0


class _Nodes(NamedTuple):
    """a and its derivative at the nodes of each side, one before 0 and one behind 1 among them.

    z_N: |x| of a side's nodes. share_2NH: softmax of u. value_2NA: a. derivative_2NA: of a by x.
    """

    z_N: Tensor
    share_2NH: Tensor
    value_2NA: Tensor
    derivative_2NA: Tensor

    def gradients(self, grad_2NA: Tensor, meta_HA: Tensor) -> tuple[Tensor, Tensor]:
        """Of slope_2H and meta_HA, from the gradient of the values."""
        inner_2N1 = (grad_2NA * self.value_2NA).sum(dim=2, keepdim=True)
        of_u_2NH = (grad_2NA @ meta_HA.t() - inner_2N1) * self.share_2NH
        return self.z_N @ of_u_2NH, self.share_2NH.flatten(0, 1).t() @ grad_2NA.flatten(0, 1)


def _nodes(slope_2H: Tensor, meta_HA: Tensor, intervals: int) -> _Nodes:
    z_N = torch.arange(-1, intervals + 2, dtype=slope_2H.dtype, device=slope_2H.device) / intervals
    share_2NH = torch.softmax(z_N.unsqueeze(1) * slope_2H.unsqueeze(1), dim=2)
    mean_21H = share_2NH @ slope_2H.unsqueeze(2)
    derivative_2NA = (share_2NH * (slope_2H.unsqueeze(1) - mean_21H)) @ meta_HA
    derivative_2NA[1].neg_()  # by x = -z
    return _Nodes(z_N, share_2NH, share_2NH @ meta_HA, derivative_2NA)


class _Places(NamedTuple):
    """The four nodes around each x of a chunk, and what they give.

    first_P: row of the first node, int32. nodes_P4: rows of all four. weight_4P, weight_P4: their weights in the cubic
    through them. valid_TR1: 1 or 0; None if all positions are valid. values_TRA: a.
    highest_RA: its maxima. count_R1: valid positions.
    """

    first_P: Tensor
    nodes_P4: Tensor
    weight_4P: Tensor
    weight_P4: Tensor
    valid_TR1: Tensor | None
    values_TRA: Tensor
    highest_RA: Tensor
    count_R1: Tensor


def _places(x_RT: Tensor, valid_RT: Tensor, value_2NA: Tensor) -> _Places:
    nodes, width = value_2NA.shape[1:]
    intervals = nodes - 3
    x_P = x_RT.t().flatten()
    z_P = x_P.abs().mul_(intervals)
    interval_P = z_P.nan_to_num().floor_().clamp_(max=intervals - 1)  # the values of NaN are NaN, by its weights
    first_P = interval_P.int().add_((x_P < 0).int().mul_(nodes))
    nodes_P4 = first_P.unsqueeze(1) + torch.arange(4, dtype=torch.int32)
    weight_4P = _cubic(z_P.sub_(interval_P))
    weight_P4 = weight_4P.t().contiguous()
    values_TRA = _weighted_rows(value_2NA.flatten(0, 1), nodes_P4, weight_P4).view(*x_RT.t().shape, width)
    count_R1 = valid_RT.sum(dim=1, keepdim=True)
    if bool(valid_RT.all()):
        return _Places(first_P, nodes_P4, weight_4P, weight_P4, None, values_TRA, values_TRA.amax(dim=0), count_R1)
    valid_TR1 = valid_RT.t().to(x_P.dtype).contiguous().unsqueeze(2)
    below_all_TR1 = (1 - valid_TR1) * torch.finfo(x_P.dtype).min  # adding takes a tenth of the time of a mask
    highest_RA = (values_TRA + below_all_TR1).amax(dim=0).masked_fill_(count_R1 == 0, 0)
    return _Places(first_P, nodes_P4, weight_4P, weight_P4, valid_TR1, values_TRA, highest_RA, count_R1)


def _cubic(s_P: Tensor) -> Tensor:
    """Weights, [4, P], of the values at -1, 0, 1 and 2 in the cubic through them, at s in [0, 1]."""
    before_P, to_first_P, to_second_P = s_P + 1, s_P - 1, s_P - 2
    inner_P, outer_P = to_first_P * to_second_P, s_P * before_P
    return torch.stack(
        [s_P * inner_P / -6, before_P * inner_P / 2, outer_P * to_second_P / -2, outer_P * to_first_P / 6]
    )


def _weighted_rows(table_NA: Tensor, rows_P4: Tensor, weight_P4: Tensor) -> Tensor:
    """Sum of the weighted rows, [P, A]."""
    return functional.embedding_bag(rows_P4, table_NA, mode="sum", per_sample_weights=weight_P4)


class _BetweenNodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BT: Tensor, valid_BT: Tensor, slope_2H: Tensor, meta_HA: Tensor, intervals: int) -> Tensor:
        ctx.save_for_backward(meta_HA)
        ctx.nodes, ctx.chunks, pooled = _nodes(slope_2H, meta_HA, intervals), [], []
        rows = max(1, POSITIONS // max(1, x_BT.shape[1]))
        for x_RT, valid_RT in zip(x_BT.split(rows), valid_BT.split(rows), strict=True):
            found = _places(x_RT, valid_RT, ctx.nodes.value_2NA)
            valid_TRA = found.values_TRA if found.valid_TR1 is None else found.values_TRA * found.valid_TR1
            pooled.append(torch.cat([found.highest_RA, valid_TRA.sum(dim=0) / found.count_R1.clamp_min(1)], dim=1))
            ctx.chunks.append(found)
        return torch.cat(pooled) if len(pooled) > 1 else pooled[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B2A: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        (meta_HA,), nodes = ctx.saved_tensors, ctx.nodes
        of_x, of_value_NA, first = [], torch.zeros_like(nodes.value_2NA).flatten(0, 1), 0
        for chunk in ctx.chunks:
            grad_R2A = grad_B2A[first : first + len(chunk.count_R1)]
            first += len(grad_R2A)
            grad_TRA = _pooled_grad(chunk, grad_R2A)
            _add_by_node(of_value_NA, chunk, grad_TRA.flatten(0, 1))
            derivative_PA = _weighted_rows(nodes.derivative_2NA.flatten(0, 1), chunk.nodes_P4, chunk.weight_P4)
            of_x.append(derivative_PA.view_as(grad_TRA).mul_(grad_TRA).sum(dim=2).t())
        of_slope_2H, of_meta_HA = nodes.gradients(of_value_NA.view_as(nodes.value_2NA), meta_HA)
        return torch.cat(of_x), None, of_slope_2H, of_meta_HA, None


def _pooled_grad(chunk: _Places, grad_R2A: Tensor) -> Tensor:
    """Gradient of a_t, [T, R, A]: from the maxima, shared among equals, and from the mean; zero at padding."""
    of_max_RA, of_mean_RA = grad_R2A.chunk(2, dim=1)
    grad_TRA = torch.eq(chunk.values_TRA, chunk.highest_RA, out=torch.empty_like(chunk.values_TRA))
    if chunk.valid_TR1 is not None:
        grad_TRA.mul_(chunk.valid_TR1)
    grad_TRA.mul_(of_max_RA / grad_TRA.sum(dim=0).clamp_min_(1)).add_(of_mean_RA / chunk.count_R1.clamp_min(1))
    return grad_TRA if chunk.valid_TR1 is None else grad_TRA.mul_(chunk.valid_TR1)


def _add_by_node(of_value_NA: Tensor, chunk: _Places, grad_PA: Tensor) -> None:
    """Adds each position's gradient to its four nodes, times their weights."""
    nodes = len(of_value_NA)
    order_P = (chunk.first_P.short() if nodes < 1 << 15 else chunk.first_P).argsort()
    start_N = torch.bincount(chunk.first_P, minlength=nodes).cumsum(0).roll(1)
    start_N[0] = 0
    weight_4P = chunk.weight_4P.index_select(1, order_P)
    for place, weight_P in enumerate(weight_4P):
        # the positions between nodes i and i + 1 begin at node i - 1: the last three are never first
        sums_NA = functional.embedding_bag(order_P, grad_PA, start_N, mode="sum", per_sample_weights=weight_P)
        of_value_NA[place:] += sums_NA[: nodes - place]


# AutoDis of an exported graph, from a table that is fine enough to need no interpolation: a lookup and two reductions.


def nearest_max_and_mean(x_BT: Tensor, valid_BT: Tensor, values_MA: Tensor, filled: bool = False) -> Tensor:
    """[max_t; mean_t] over the valid positions of the row of values_MA that is nearest to x_t, [B, 2A].

    Zeros where none is valid. values_MA: at M equally spaced points from -1 to 1. filled: whether x is at other
    positions that of the first valid one, as in a history that rows share.
    """
    row_BT = ((x_BT + 1) * ((len(values_MA) - 1) / 2)).round().clamp(0, len(values_MA) - 1).long()
    # Other positions read the row of the first valid one: no maximum changes, and the sum gives them back. A mask would
    # be one more pass over [B, T, A] for each of the two.
    count_B1 = valid_BT.sum(dim=1, keepdim=True)
    first_B1 = row_BT.gather(1, valid_BT.long().argmax(dim=1, keepdim=True).expand(row_BT.shape[0], -1))
    value_BTA = functional.embedding(row_BT if filled else torch.where(valid_BT, row_BT, first_B1), values_MA)
    given_back_BA = (x_BT.shape[1] - count_B1) * functional.embedding(first_B1.squeeze(1), values_MA)
    mean_BA = (value_BTA.sum(dim=1) - given_back_BA) / count_B1.clamp_min(1)
    pooled_B2A = torch.cat([value_BTA.amax(dim=1), mean_BA], dim=1)
    return pooled_B2A.masked_fill(count_B1 == 0, 0.0)


# AutoDis by interpolation: x picks two neighbours of M equally spaced points, where the values are known. What is left
# per position is a lookup, and sums over positions are sparse. About a third of the time of the chunks above.


def interpolated_max_and_mean(x_BT: Tensor, valid_BT: Tensor, values_MA: Tensor, paths: Paths | None = None) -> Tensor:
    """[max_t; mean_t] of f(x_t) over the valid positions, [B, 2A]; zeros where none is valid.

    f: interpolates linearly between values_MA, its values at M points from -1 to 1. The gradient is that of the
    interpolation; the first of equal maxima has all of theirs. paths: as in `autodis_max_and_mean`.
    """
    return _interpolated(x_BT, valid_BT, values_MA, paths)


@fx.wrap
def _interpolated(x_BT: Tensor, valid_BT: Tensor, values_MA: Tensor, paths: Paths | None) -> Tensor:
    used = paths or paths_of(x_BT.device)
    if used.inline:
        return masked_max_and_mean(interpolated(x_BT, values_MA), valid_BT)
    pooled_B2A: Tensor = _Interpolated.apply(x_BT, valid_BT, values_MA, used)  # type: ignore[no-untyped-call]
    return pooled_B2A


class _Interpolated(torch.autograd.Function):
    """Tables have a row per interval, and a last row for padding."""

    @staticmethod
    def forward(ctx: Any, x_BT: Tensor, valid_BT: Tensor, values_MA: Tensor, paths: Paths) -> Tensor:
        intervals, padding_1A = len(values_MA) - 1, torch.zeros_like(values_MA[:1])
        place_BT = ((x_BT + 1) * (intervals / 2)).clamp_(0, intervals)
        first_BT = place_BT.floor().clamp_max_(intervals - 1)
        share_BT = (place_BT - first_BT).mul_(valid_BT)
        row_BT = first_BT.long().masked_fill_(~valid_BT, intervals)
        value_MA, step_MA = torch.cat([values_MA[:-1], padding_1A]), torch.cat([values_MA.diff(dim=0), padding_1A])
        comparable_MA = torch.cat([values_MA[:-1], padding_1A - torch.inf])
        found = [
            _highest(*chunk, comparable_MA, step_MA)
            for chunk in zip(row_BT.split(paths.rows), share_BT.split(paths.rows), strict=True)
        ]
        highest_BA, position_BA = (torch.cat(parts) for parts in zip(*found, strict=True))
        count_B1 = valid_BT.sum(dim=1, keepdim=True)
        sum_BA = functional.embedding_bag(row_BT, value_MA, mode="sum")
        sum_BA += functional.embedding_bag(row_BT, step_MA, mode="sum", per_sample_weights=share_BT)
        ctx.paths = paths
        ctx.save_for_backward(row_BT, share_BT, step_MA, position_BA, count_B1)
        return torch.cat([highest_BA.masked_fill_(count_B1 == 0, 0), sum_BA / count_B1.clamp_min(1)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B2A: Tensor) -> tuple[Tensor, None, Tensor, None]:
        row_BT, share_BT, step_MA, position_BA, count_B1 = ctx.saved_tensors
        of_max_BA, of_mean_BA = grad_B2A.chunk(2, dim=1)
        of_max_BA = of_max_BA.masked_fill(count_B1 == 0, 0)
        of_mean_BA = of_mean_BA / count_B1.clamp_min(1)
        rows, width = step_MA.shape
        # the entry of a table that each maximum read
        entry_BA = row_BT.gather(1, position_BA) * width + torch.arange(width, device=row_BT.device)
        x_grad_BT = torch.bmm(functional.embedding(row_BT, step_MA), of_mean_BA.unsqueeze(2)).squeeze(2)
        x_grad_BT.scatter_add_(1, position_BA, of_max_BA * step_MA.take(entry_BA))
        s0_MA, s1_MA = _sums_ofintervals_between_nodes(row_BT, share_BT, of_mean_BA, rows, ctx.paths)
        entry_N, share_BA = entry_BA.flatten(), share_BT.gather(1, position_BA)
        s0_MA.view(-1).scatter_add_(0, entry_N, of_max_BA.flatten())
        s1_MA.view(-1).scatter_add_(0, entry_N, (of_max_BA * share_BA).flatten())
        values_grad_MA = s0_MA - s1_MA
        values_grad_MA[-1] = 0  # of padding: becomes the last point
        values_grad_MA[1:] += s1_MA[:-1]
        return x_grad_BT * ((rows - 1) / 2), None, values_grad_MA, None


def _sums_ofintervals_between_nodes(
    row_BT: Tensor, share_BT: Tensor, grad_BA: Tensor, rows: int, paths: Paths
) -> tuple[Tensor, Tensor]:
    """S0: sum of the gradients of an interval's positions. S1: the same, times the share of the interval's end."""
    if paths.balanced:
        segments = Segments(row_BT, rows - 1)  # the last row is that of padding
        sums = segments.sum(grad_BA), segments.sum(grad_BA, share_BT)
        return functional.pad(sums[0], (0, 0, 0, 1)), functional.pad(sums[1], (0, 0, 0, 1))
    sorted_P, order_P = row_BT.flatten().int().sort()
    first_M = torch.searchsorted(sorted_P, torch.arange(rows, dtype=torch.int32, device=row_BT.device))
    line_P = order_P.div(row_BT.shape[1], rounding_mode="floor")
    share_P = share_BT.flatten().index_select(0, order_P)
    s0_MA = functional.embedding_bag(line_P, grad_BA, first_M, mode="sum")
    return s0_MA, functional.embedding_bag(line_P, grad_BA, first_M, mode="sum", per_sample_weights=share_P)


def _highest(row_RT: Tensor, share_RT: Tensor, value_MA: Tensor, step_MA: Tensor) -> tuple[Tensor, Tensor]:
    """max_t of the interpolated values, and its t: [R, A] each."""
    value_RTA = functional.embedding(row_RT, value_MA)
    value_RTA.addcmul_(functional.embedding(row_RT, step_MA), share_RT.unsqueeze(2))
    highest_RA, position_RA = value_RTA.max(dim=1)
    return highest_RA, position_RA
