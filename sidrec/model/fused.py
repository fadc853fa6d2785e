"""The functions of the fused regions (`sidrec.model.regions`) and their gradients.

Each computes what a module computes operator by operator without regions; tests/model/test_regions.py compares the two.

Shapes: B rows, U item bags, T history positions, D width, G granularities, H hidden width or soft buckets, A width of a
meta-embedding, M points of a grid, S statistics.
"""

import math
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from sidrec.model.regions import Region, vjp

# Fusion (`AdditiveAttention`): the granules of each item to e_sid, and, where cosines need it, e_sid / |e_sid|.
#
# Inputs: G granules [U, D]; W [H, D], b [G, H], v [1, H]. Their stack is never made: each granule is read from its
# place in the lookup's output. Kept: W e_k of each granule, [U, H], a quarter of the granules' bytes.
#
# Options: columns in front of the granules' in the lookup's output. The granules' gradients are slices of one tensor
# with room for those columns, which `split_lookup` completes instead of copying them all.

SHORTEST = 1e-6  # of e_sid, when it is scaled to unit length


def _fuse(inputs: list[Tensor], options: list[float]) -> list[Tensor]:
    granules, (project_HD, bias_GH, score_1H) = inputs[:-3], inputs[-3:]
    projected = [functional.linear(granule_UD, project_HD) for granule_UD in granules]
    sid_UD = _weighted(_attention(projected, bias_GH, score_1H), granules)
    return [sid_UD, *projected]


def _fuse_with_unit(inputs: list[Tensor], options: list[float]) -> list[Tensor]:
    sid_UD, *projected = _fuse(inputs, options)
    return [sid_UD, sid_UD / _length(sid_UD).clamp_min(SHORTEST), *projected]


def _attention(projected: list[Tensor], bias_GH: Tensor, score_1H: Tensor) -> list[Tensor]:
    """alpha_k of each granularity, [U, 1]."""
    scores = [
        (torch.tanh(found_UH + bias_GH[k]) * score_1H).sum(1, keepdim=True) for k, found_UH in enumerate(projected)
    ]
    highest_U1 = reduce(torch.maximum, scores)
    shares = [torch.exp(score_U1 - highest_U1) for score_U1 in scores]
    total_U1 = sum(shares[1:], shares[0])
    return [share_U1 / total_U1 for share_U1 in shares]


def _weighted(alphas: list[Tensor], granules: list[Tensor]) -> Tensor:
    terms = [alpha_U1 * granule_UD for alpha_U1, granule_UD in zip(alphas, granules, strict=True)]
    return sum(terms[1:], terms[0])


def _length(sid_UD: Tensor) -> Tensor:
    return torch.linalg.vector_norm(sid_UD, dim=1, keepdim=True)


def _fuse_backward(
    inputs: list[Tensor], outputs: list[Tensor], gradients: list[Tensor], options: list[float]
) -> list[Tensor | None]:
    granules, (project_HD, bias_GH, score_1H) = inputs[:-3], inputs[-3:]
    projected = outputs[-len(granules) :]
    alphas = _attention(projected, bias_GH, score_1H)
    grad_UD = gradients[0]
    if len(gradients) == 2:  # of e_sid / |e_sid| too
        sid_UD, of_unit_UD = _weighted(alphas, granules), gradients[1]
        length_U1 = _length(sid_UD)
        scale_U1 = 1 / length_U1.clamp_min(SHORTEST)
        along_U1 = (sid_UD * of_unit_UD).sum(1, keepdim=True) * scale_U1 * scale_U1 * (length_U1 >= SHORTEST)
        grad_UD = grad_UD + scale_U1 * (of_unit_UD - along_U1 * sid_UD)
    inner = [(granule_UD * grad_UD).sum(1, keepdim=True) for granule_UD in granules]
    mean_U1 = sum((alpha_U1 * inner_U1 for alpha_U1, inner_U1 in zip(alphas, inner, strict=True)), 0)
    found, of_project, of_bias, of_score = [], [], [], []
    for k, granule_UD in enumerate(granules):
        activated_UH = torch.tanh(projected[k] + bias_GH[k])
        of_alpha_U1 = alphas[k] * (inner[k] - mean_U1)
        of_projected_UH = of_alpha_U1 * score_1H * (1 - activated_UH * activated_UH)
        # W^T g as a sum of H terms, which is fused with what it is added to; a product of matrices is not
        columns = of_projected_UH.unbind(1)
        through_UD = sum((c.unsqueeze(1) * project_HD[h] for h, c in enumerate(columns)), alphas[k] * grad_UD)
        found.append(through_UD)
        of_project.append(of_projected_UH.t() @ granule_UD)
        of_bias.append(of_projected_UH.sum(0))
        of_score.append((of_alpha_U1 * activated_UH).sum(0))
    sums = (sum(of_project[1:], of_project[0]), torch.stack(of_bias), sum(of_score[1:], of_score[0]).unsqueeze(0))
    joint_UF = torch.cat([granules[0].new_zeros(len(grad_UD), int(options[0])), *found], dim=1)
    return [*joint_UF[:, int(options[0]) :].split(grad_UD.shape[1], dim=1), *sums]


FUSION = Region("fuse", _fuse, -3, _fuse_backward)
FUSION_WITH_UNIT = Region("fuse_with_unit", _fuse_with_unit, -3, _fuse_backward, results=2)


# Gate (`TargetAwareGate` without options).


def _gate(inputs: list[Tensor], options: list[float]) -> list[Tensor]:
    hid_BD, sid_BD, has_sid_B, stats_BS, mean_S, std_S, *layers = inputs
    first_HS, bias_H, last_1H, bias_1 = layers
    hidden_BH = torch.relu(functional.linear((torch.log1p(stats_BS) - mean_S) / std_S, first_HS, bias_H))
    gate_B1 = torch.sigmoid(functional.linear(hidden_BH, last_1H, bias_1))
    return [torch.where(has_sid_B.unsqueeze(1), torch.lerp(sid_BD, hid_BD, gate_B1), hid_BD)]


GATE = Region("gate", _gate, 4)


# Cosines (`HistoryIndex.products`): gather and dot. Its gradient is that of `products_with_history`.


def _products(inputs: list[Tensor], options: list[float]) -> list[Tensor]:
    items_UD, bag_BT, rows_BD = inputs
    return [(functional.embedding(bag_BT, items_UD) * rows_BD.unsqueeze(1)).sum(dim=2)]


PRODUCTS = Region("products", _products, 3)


# AutoDis of similarities (`AutoDis.with_flag`): [max; mean; 1 if no position is valid else 0], [B, 2A + 1].
#
# Inputs: x [B, T], valid [B, T]; w [H], W [H, H], ME [H, A]. Options: skip, temperature, and intervals of the grid.


def autodis_slopes(weight_H: Tensor, mix_HH: Tensor, skip: float, temperature: float) -> Tensor:
    """u = x slope[0] where x >= 0 and -x slope[1] where x < 0, over the temperature: [2, H]."""
    hidden_2H = functional.leaky_relu(torch.stack([weight_H, -weight_H]))
    return (functional.linear(hidden_2H, mix_HH) + skip * hidden_2H) / temperature


def autodis_grid(slope_2H: Tensor, meta_HA: Tensor, grid: int) -> Tensor:
    """AutoDis of the ends of `grid` equal intervals of [-1, 1], [M, A]."""
    x_M = torch.linspace(-1, 1, grid + 1, dtype=slope_2H.dtype, device=slope_2H.device)
    magnitude_M2 = torch.stack([x_M.clamp_min(0), x_M.neg().clamp_min(0)], dim=1)
    return torch.softmax(magnitude_M2 @ slope_2H, dim=1) @ meta_HA


def _pooled(values_BTA: Tensor, valid_BT: Tensor) -> Tensor:
    count_B1 = valid_BT.sum(dim=1, keepdim=True)
    highest_BA = torch.where(valid_BT.unsqueeze(2), values_BTA, -torch.inf).amax(dim=1)
    mean_BA = torch.where(valid_BT.unsqueeze(2), values_BTA, 0).sum(dim=1) / count_B1.clamp_min(1)
    is_empty_B1 = count_B1 == 0
    return torch.cat([torch.where(is_empty_B1, 0, highest_BA), mean_BA, is_empty_B1.to(mean_BA.dtype)], dim=1)


def _shares(x_BT: Tensor, slope_2H: Tensor) -> Tensor:
    """exp(u - max u), [B, T, H]."""
    below_2H = (slope_2H - slope_2H.amax(dim=1, keepdim=True)) / math.log(2)
    x_BT1 = x_BT.unsqueeze(2)
    return torch.exp2(x_BT1.clamp_min(0) * below_2H[0] + x_BT1.neg().clamp_min(0) * below_2H[1])


def _autodis(inputs: list[Tensor], options: list[float]) -> list[Tensor]:
    x_BT, valid_BT, weight_H, mix_HH, meta_HA = inputs
    share_BTH = _shares(x_BT, autodis_slopes(weight_H, mix_HH, *options))
    return [_pooled((share_BTH @ meta_HA) / share_BTH.sum(2, keepdim=True), valid_BT)]


def _autodis_backward(
    inputs: list[Tensor], outputs: list[Tensor], gradients: list[Tensor], options: list[float]
) -> list[Tensor | None]:
    """Equal maxima share their gradient."""
    x_BT, valid_BT, weight_H, mix_HH, meta_HA = inputs
    slope_2H, of_parameters = vjp(lambda w, mix: autodis_slopes(w, mix, *options), weight_H, mix_HH)
    share_BTH = _shares(x_BT, slope_2H)
    total_BT1 = share_BTH.sum(2, keepdim=True)
    value_BTA = (share_BTH @ meta_HA) / total_BT1
    width, valid_BT1 = meta_HA.shape[1], valid_BT.unsqueeze(2)
    of_max_BA, of_mean_BA = gradients[0][:, :width], gradients[0][:, width : 2 * width]
    highest_BA = torch.where(valid_BT1, value_BTA, -torch.inf).amax(dim=1)
    is_max_BTA = (value_BTA == highest_BA.unsqueeze(1)) & valid_BT1
    of_max_BA = of_max_BA / is_max_BTA.sum(dim=1).clamp_min(1)
    of_mean_BA = of_mean_BA / valid_BT.sum(dim=1, keepdim=True).clamp_min(1)
    of_value_BTA = torch.where(is_max_BTA, of_max_BA.unsqueeze(1), 0) + of_mean_BA.unsqueeze(1)
    of_value_BTA = torch.where(valid_BT1, of_value_BTA, 0) / total_BT1
    # softmax: du = p (ME g - a . g), with p = share / total
    inner_BT1 = (value_BTA * of_value_BTA).sum(2, keepdim=True)
    of_u_BTH = ((of_value_BTA.unsqueeze(2) * meta_HA).sum(3) - inner_BT1) * share_BTH
    magnitude_BT2 = torch.stack([x_BT.clamp_min(0), x_BT.neg().clamp_min(0)], dim=2)
    of_slope_2H = magnitude_BT2.flatten(0, 1).t() @ of_u_BTH.flatten(0, 1)
    of_meta_HA = share_BTH.flatten(0, 1).t() @ of_value_BTA.flatten(0, 1)
    of_x_BT = torch.where(x_BT >= 0, (of_u_BTH * slope_2H[0]).sum(2), -(of_u_BTH * slope_2H[1]).sum(2))
    return [of_x_BT, None, *of_parameters(of_slope_2H), of_meta_HA]


AUTODIS = Region("autodis", _autodis, 2, _autodis_backward)


def _place(x_BT: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """The interval of each x in [0, grid) and its place between 0 and grid. NaN has a place of NaN in interval 0."""
    place_BT = ((x_BT + 1) * (grid / 2)).clamp(0, grid)
    return torch.where(place_BT >= 0, place_BT, 0).floor().clamp_max(grid - 1).long(), place_BT


def interpolated(x_BT: Tensor, values_MA: Tensor) -> Tensor:
    """values_MA, given at M equally spaced points from -1 to 1, interpolated linearly at each x: [B, T, A]."""
    interval_BT, place_BT = _place(x_BT, len(values_MA) - 1)
    step_MA = values_MA[1:] - values_MA[:-1]
    share_BT1 = (place_BT - interval_BT).unsqueeze(2)
    return functional.embedding(interval_BT, values_MA) + share_BT1 * functional.embedding(interval_BT, step_MA)


def _autodis_on_grid(inputs: list[Tensor], options: list[float]) -> list[Tensor]:
    x_BT, valid_BT, weight_H, mix_HH, meta_HA = inputs
    skip, temperature, grid = options
    values_MA = autodis_grid(autodis_slopes(weight_H, mix_HH, skip, temperature), meta_HA, int(grid))
    return [_pooled(interpolated(x_BT, values_MA), valid_BT)]


def _autodis_on_grid_backward(
    inputs: list[Tensor], outputs: list[Tensor], gradients: list[Tensor], options: list[float]
) -> list[Tensor | None]:
    """The first of equal maxima has all of their gradient.

    Point m weighs max(0, 1 - |place - m|) in an interpolated value, so that sums over positions need no scatter: of the
    mean, these weights are summed over the history before they meet the gradient.
    """
    x_BT, valid_BT, weight_H, mix_HH, meta_HA = inputs
    skip, temperature, grid = options
    values_MA, of_parameters = vjp(
        lambda w, mix, meta: autodis_grid(autodis_slopes(w, mix, skip, temperature), meta, int(grid)),
        weight_H, mix_HH, meta_HA,
    )  # fmt: skip
    width, count_B1 = values_MA.shape[1], valid_BT.sum(dim=1, keepdim=True)
    of_max_BA = torch.where(count_B1 == 0, 0, gradients[0][:, :width])
    of_mean_BA = gradients[0][:, width : 2 * width] / count_B1.clamp_min(1)
    value_BTA = torch.where(valid_BT.unsqueeze(2), interpolated(x_BT, values_MA), -torch.inf)
    position_BA = value_BTA.argmax(dim=1)
    interval_BT, place_BT = _place(x_BT, int(grid))
    points_M = torch.arange(int(grid) + 1, dtype=x_BT.dtype, device=x_BT.device)
    weight_BTM = (1 - (place_BT.unsqueeze(2) - points_M).abs()).clamp_min(0)
    summed_BM = torch.where(valid_BT.unsqueeze(2), weight_BTM, 0).sum(dim=1)
    highest_BA = place_BT.gather(1, position_BA)
    weight_BMA = (1 - (highest_BA.unsqueeze(1) - points_M.unsqueeze(1)).abs()).clamp_min(0)
    of_values_MA = summed_BM.t() @ of_mean_BA + (weight_BMA * of_max_BA.unsqueeze(1)).sum(dim=0)
    places_T1 = torch.arange(x_BT.shape[1], device=x_BT.device).unsqueeze(1)
    of_value_BTA = torch.where(position_BA.unsqueeze(1) == places_T1, of_max_BA.unsqueeze(1), 0)
    step_BTA = functional.embedding(interval_BT, values_MA[1:] - values_MA[:-1])
    of_x_BT = (step_BTA * (of_value_BTA + of_mean_BA.unsqueeze(1))).sum(dim=2) * (grid / 2)
    return [torch.where(valid_BT, of_x_BT, 0), None, *of_parameters(of_values_MA)]


AUTODIS_ON_GRID = Region("autodis_on_grid", _autodis_on_grid, 2, _autodis_on_grid_backward)


# Target attention (`TargetAttention`): scores, weights and the weighted sum, [B, D].
#
# Inputs: items [U, D], bag [B, T], valid [B, T], target [B, D]; weight and bias of each layer, then PReLU's slopes.
# With a softmax over the history the last layer has no bias. The items' gradient is by position, [B, T, D].


def _attend(inputs: list[Tensor], options: list[float]) -> list[Tensor]:
    items_UD, bag_BT, *others = inputs
    return _attend_to([functional.embedding(bag_BT, items_UD), *others], options)


def _attend_to(inputs: list[Tensor], options: list[float]) -> list[Tensor]:
    items_BTD, valid_BT, target_BD, first_HX, bias_H, *further = inputs
    hidden_layers, softmax = (len(further) + 2) // 3, len(further) % 3 == 2
    slopes = further[-hidden_layers:]
    of_item_HD, of_target_HD, of_difference_HD, of_product_HD = first_HX.chunk(4, dim=1)
    matrix_BHD = torch.addcmul(of_item_HD + of_difference_HD, of_product_HD, target_BD.unsqueeze(1))
    shift_BH = functional.linear(target_BD, of_target_HD - of_difference_HD, bias_H)
    hidden_BTH = torch.baddbmm(shift_BH.unsqueeze(1), items_BTD, matrix_BHD.transpose(1, 2))
    for layer, slope in enumerate(slopes):
        weight, bias = further[2 * layer], None if softmax and layer == hidden_layers - 1 else further[2 * layer + 1]
        hidden_BTH = functional.linear(torch.lerp(hidden_BTH.relu(), hidden_BTH, slope), weight, bias)
    weight_BT = hidden_BTH.squeeze(2)
    if softmax:
        lowest = torch.finfo(weight_BT.dtype).min
        weight_BT = torch.where(valid_BT, weight_BT, lowest).softmax(dim=1)
    weight_BT = torch.where(valid_BT, weight_BT, 0)
    return [(weight_BT.unsqueeze(2) * items_BTD).sum(dim=1)]


def _attend_backward(
    inputs: list[Tensor], outputs: list[Tensor], gradients: list[Tensor], options: list[float]
) -> list[Tensor | None]:
    items_UD, bag_BT, valid_BT, *others = inputs
    _, pull_back = vjp(
        lambda items_BTD, *others: _attend_to([items_BTD, valid_BT, *others], options)[0],
        functional.embedding(bag_BT, items_UD), *others,
    )  # fmt: skip
    of_items_BTD, *of_others = pull_back(gradients[0])
    return [of_items_BTD, None, None, *of_others]


ATTENTION = Region("attend", _attend, 4, _attend_backward)
