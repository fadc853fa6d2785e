"""Alignment of an item's modalities with each other (ADC-SID, arXiv 2510.25622v3, equations 15 to 21).

Shapes: B items of a batch, D width of a tower, A items that have a behaviour vector.
"""

from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

from sidrec.config.learners import AdcSidConfig
from sidrec.sid.losses.controller import alignment_strength
from sidrec.sid.losses.info_nce import info_nce, mean_or_zero, same_item


def content_to_behavior(
    content: Sequence[Tensor],
    behavior_BD: Tensor,
    scaled_norm_B: Tensor,
    known_B: Tensor,
    rows_B: Tensor,
    config: AdcSidConfig,
) -> Tensor:
    """Sum over content columns of mean_i w_i InfoNCE(content_i -> behaviour_i); w_i = 1 without a controller.

    known_B: bool, which items have a behaviour vector; the others are neither anchors nor negatives.
    """
    behavior_AD = (behavior_BD.detach() if config.detach_behavior else behavior_BD)[known_B]
    excluded_AA = same_item(rows_B[known_B])
    total = behavior_BD.new_zeros(())
    for content_BD in content:
        loss_A = info_nce(content_BD[known_B], behavior_AD, config.temperature, excluded_AA)
        if config.controller is not None:
            loss_A = loss_A * alignment_strength(scaled_norm_B[known_B], config.controller)
        total = total + mean_or_zero(loss_A)
    return total


def between_content(content: Sequence[Tensor], rows_B: Tensor, config: AdcSidConfig) -> Tensor:
    """Sum over pairs of content columns of the mean InfoNCE in both directions; 0 for a single column."""
    excluded_BB = same_item(rows_B)
    total = content[0].new_zeros(())
    for one_BD, other_BD in combinations(content, 2):
        there_B = info_nce(one_BD, other_BD, config.temperature, excluded_BB)
        back_B = info_nce(other_BD, one_BD, config.temperature, excluded_BB)
        total = total + (there_B + back_B).mean()
    return total
