"""Fusion of granules (`AdditiveAttention`) on a CPU: one function with a gradient of its own.

Autograd's chain takes half as long again or more: it makes a dozen tensors [U, G, D], and torch's tanh, its softmax
over a few granules and its sums over the last dimension are slow there. Here such sums are products of matrices, and
tanh(y) is 2 sigmoid(2 y) - 1, which differs from it by the rounding of values near 1 (6e-8).

Shapes: U items, G granularities, N = U G granules, D width, H hidden width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sidrec.model.fused import SHORTEST


def fuse_on_cpu(
    granules_UGD: Tensor, weights: Sequence[Tensor], with_unit: bool, before: int = 0
) -> tuple[Tensor, ...]:
    """e_sid [U, D], and e_sid / |e_sid| if with_unit. weights: `AdditiveAttention.region_weights`. before: columns in
    front of the granules' in the lookup's output; the gradient has room for them (`split_lookup`)."""
    found: tuple[Tensor, ...] = _Fused.apply(granules_UGD, *weights, with_unit, before)  # type: ignore[no-untyped-call]
    return found


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        granules_UGD: Tensor,
        project_HD: Tensor,
        bias_GH: Tensor,
        score_1H: Tensor,
        with_unit: bool,
        before: int,
    ) -> tuple[Tensor, ...]:
        ctx.before = before
        items, granularities, _ = granules_UGD.shape
        granule_ND = granules_UGD.flatten(0, 1)
        projected_NH = granule_ND @ project_HD.t()
        projected_NH.view(items, -1).add_(bias_GH.flatten())
        activated_NH = projected_NH.mul_(2).sigmoid_().mul_(2).sub_(1)
        score_GU = (activated_NH @ score_1H.t()).view(items, granularities).t().contiguous()
        share_GU = score_GU.sub_(score_GU.amax(dim=0)).exp_()
        alpha_UG = share_GU.div_(share_GU.sum(dim=0)).t().contiguous()
        place_UG = torch.arange(items * granularities, dtype=torch.int32).view(items, granularities)
        sid_UD = functional.embedding_bag(place_UG, granule_ND, mode="sum", per_sample_weights=alpha_UG)
        ctx.save_for_backward(granule_ND, project_HD, score_1H, activated_NH, alpha_UG)
        if not with_unit:
            return (sid_UD,)
        length_U1 = torch.linalg.vector_norm(sid_UD, dim=1, keepdim=True)
        unit_UD = sid_UD / length_U1.clamp_min(SHORTEST)
        ctx.unit_UD, ctx.length_U1 = unit_UD.detach(), length_U1
        return sid_UD, unit_UD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        granule_ND, project_HD, score_1H, activated_NH, alpha_UG = ctx.saved_tensors
        items, granularities = alpha_UG.shape
        grad_UD = gradients[0]
        if len(gradients) == 2:
            grad_UD = grad_UD + _through_unit(ctx.unit_UD, ctx.length_U1, gradients[1])
        inner_UG = torch.bmm(granule_ND.view(items, granularities, -1), grad_UD.unsqueeze(2)).squeeze(2)
        # softmax: d score = alpha (inner - sum of alpha inner)
        of_score_GU = (alpha_UG * inner_UG).t().contiguous()
        of_score_GU.sub_(alpha_UG.t() * of_score_GU.sum(dim=0))
        of_score_N1 = of_score_GU.t().reshape(-1, 1)
        of_projected_NH = (1 - activated_NH * activated_NH).mul_(score_1H).mul_(of_score_N1)
        width = granule_ND.shape[1]
        joint_UF = granule_ND.new_empty(items, ctx.before + granularities * width)
        of_granules_UGD = joint_UF[:, ctx.before :].view(items, granularities, width)
        through_UGD = (of_projected_NH @ project_HD).view(items, granularities, width)
        torch.addcmul(through_UGD, alpha_UG.unsqueeze(2), grad_UD.unsqueeze(1), out=of_granules_UGD)
        of_bias_GH = of_projected_NH.view(items, -1).sum(dim=0).view(granularities, -1)
        return of_granules_UGD, of_projected_NH.t() @ granule_ND, of_bias_GH, of_score_N1.t() @ activated_NH, None, None


def _through_unit(unit_UD: Tensor, length_U1: Tensor, of_unit_UD: Tensor) -> Tensor:
    """The gradient of e_sid from that of e_sid / |e_sid|, whose divisor is a constant for the shortest."""
    ones_D1 = unit_UD.new_ones(unit_UD.shape[1], 1)
    along_U1 = (unit_UD * of_unit_UD) @ ones_D1 * (length_U1 >= SHORTEST)
    return torch.addcmul(of_unit_UD, unit_UD, along_U1, value=-1).div_(length_U1.clamp_min(SHORTEST))
