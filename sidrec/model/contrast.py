"""Contrastive losses between an item's HID and SID, within the lanes of a batch.

A lane gives the same rows to a step at any number of ranks, so these losses are the same too.

Shapes: B rows, L lanes of R rows, D width.
"""

import torch
from torch import Tensor, fx

from sidrec.config.item_parts import CodeContrast
from sidrec.sid.losses.loss import info_nce, same_item, unit


def contrast_within_lanes(
    anchor_BD: Tensor, target_BD: Tensor, bag_B: Tensor, rows_per_lane: int, temperature: float
) -> Tensor:
    """InfoNCE by cosine of every row's anchor to its own target, [B]; 0 at padding.

    Negatives are the other rows of the same lane.

    bag_B: the rows' items, lanes end to end. Padding (0) and further rows of the anchor's item are not negatives.
    rows_per_lane: of every lane, padding included.
    """
    return _contrast(anchor_BD, target_BD, bag_B, rows_per_lane, temperature)


@fx.wrap  # fx cannot trace a loop over lanes
def _contrast(anchor_BD: Tensor, target_BD: Tensor, bag_B: Tensor, rows_per_lane: int, temperature: float) -> Tensor:
    assert len(bag_B) % rows_per_lane == 0, "a batch holds whole lanes"
    lanes = zip(*(torch.split(rows, rows_per_lane) for rows in (anchor_BD, target_BD, bag_B)), strict=True)
    losses = [info_nce(anchor, target, temperature, same_item(bag) | (bag == 0)) for anchor, target, bag in lanes]
    return torch.cat(losses).masked_fill(bag_B == 0, 0.0)


# H2Rec's code-guided alignment.


class CodeGuidedContrast:
    """The weighted loss of every row (H2Rec, arXiv 2512.10388; see the section CodeContrast).

    rows_per_lane: R, padding included.
    """

    def __init__(self, config: CodeContrast, rows_per_lane: int) -> None:
        self.config, self.rows_per_lane = config, rows_per_lane

    def __call__(
        self, hid_BD: Tensor, sid_BD: Tensor, bag_B: Tensor, granules_BG: Tensor | None, stats_BS: Tensor
    ) -> Tensor:
        """[B]: a lane's mean over rows that are not padding is its mean over distinct items; 0 at padding.

        bag_B: the rows' items, lanes end to end; 0 for padding and items without a SID. granules_BG: their granules,
        to find items with the same SID; None: no item has another's. stats_BS: raw counts.
        """
        if self.config.detach_sid:
            sid_BD = sid_BD.detach()
        loss_B = symmetric_contrast(hid_BD, sid_BD, bag_B, granules_BG, self.rows_per_lane, self.config.temperature)
        if self.config.strength is not None:
            loss_B = loss_B * (self.config.strength / (stats_BS[:, 0] + self.config.strength))
        return self.config.weight * loss_B


@fx.wrap  # fx cannot trace views of a batch whose size it does not know
def symmetric_contrast(
    hid_BD: Tensor,
    sid_BD: Tensor,
    bag_B: Tensor,
    granules_BG: Tensor | None,
    rows_per_lane: int,
    temperature: float,
) -> Tensor:
    """The mean of both directions' losses over the distinct items of a lane, spread over the rows, [B]. 0 at padding.

    Rows of the same item share its loss: their losses sum to the item's, times rows over distinct items of the lane.
    """
    bag_LR = bag_B.view(-1, rows_per_lane)
    real_LR = bag_LR > 0
    same_LRR = bag_LR.unsqueeze(2) == bag_LR.unsqueeze(1)
    first_LR = real_LR & ~same_LRR.tril(-1).any(dim=2)  # one row of each distinct item
    positive_LRR = same_LRR
    if granules_BG is not None:
        positive_LRR = same_LRR | _same_granules(granules_BG.unflatten(0, (-1, rows_per_lane)))
    hid_LRD, sid_LRD = (unit(rows_BD).unflatten(0, (-1, rows_per_lane)) for rows_BD in (hid_BD, sid_BD))
    logit_LRR = torch.bmm(sid_LRD, hid_LRD.transpose(1, 2)) / temperature
    loss_LR = (_anchor_loss(logit_LRR, positive_LRR, first_LR) + _anchor_loss(logit_LRR.mT, positive_LRR, first_LR)) / 2
    share_LR = real_LR.sum(dim=1, keepdim=True) / first_LR.sum(dim=1, keepdim=True).clamp_min(1)
    return (loss_LR * share_LR / same_LRR.sum(dim=2)).masked_fill(~real_LR, 0.0).flatten()


def _same_granules(granules_LRG: Tensor) -> Tensor:
    """Whether two rows have the same granule at every granularity, bool [L, R, R]."""
    same_LRR = granules_LRG.new_ones((), dtype=torch.bool)
    for granule_LR in granules_LRG.unbind(dim=2):
        same_LRR = same_LRR & (granule_LR.unsqueeze(2) == granule_LR.unsqueeze(1))
    return same_LRR


def _anchor_loss(logit_LRR: Tensor, positive_LRR: Tensor, first_LR: Tensor) -> Tensor:
    """-log of the positives' share among the distinct items, for each row as an anchor, [L, R]."""
    lowest = torch.finfo(logit_LRR.dtype).min
    among_LRR = logit_LRR.masked_fill(~first_LR.unsqueeze(1), lowest)
    of_positives_LR = among_LRR.masked_fill(~positive_LRR, lowest).logsumexp(dim=2)
    return among_LRR.logsumexp(dim=2) - of_positives_LR
