"""Contrast of two embeddings of an item, each row's negatives among the other rows of its lane.

Which rows a rank holds depends on the number of ranks, which rows a lane gives to a step does not: negatives from one
lane alone make the loss the same at any number of ranks.

Shapes: B rows, lanes end to end; D width.
"""

import torch
from torch import Tensor, fx

from sidrec.sid.losses.info_nce import info_nce, same_item


def contrast_within_lanes(
    anchor_BD: Tensor, target_BD: Tensor, bag_B: Tensor, rows_per_lane: int, temperature: float
) -> Tensor:
    """InfoNCE by cosine of every row's anchor to its own target, [B]; 0 for padding.

    bag_B: the rows' items. Padding (0) and further rows of the anchor's item are no negatives. rows_per_lane: each
    lane has as many, padding included.
    """
    return _contrast(anchor_BD, target_BD, bag_B, rows_per_lane, temperature)


@fx.wrap  # the pipelines trace the ranker, and fx does not know how many lanes a batch has
def _contrast(anchor_BD: Tensor, target_BD: Tensor, bag_B: Tensor, rows_per_lane: int, temperature: float) -> Tensor:
    assert len(bag_B) % rows_per_lane == 0, "a batch holds whole lanes"
    lanes = zip(*(torch.split(rows, rows_per_lane) for rows in (anchor_BD, target_BD, bag_B)), strict=True)
    losses = [info_nce(anchor, target, temperature, same_item(bag) | (bag == 0)) for anchor, target, bag in lanes]
    return torch.cat(losses).masked_fill(bag_B == 0, 0.0)
