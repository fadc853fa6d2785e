"""Pairs of a batch that a repulsion looks at, and how many codes they share.

Shapes as in `sidrec.sid.networks.network`.
"""

import torch
from torch import Tensor

from sidrec.sid.networks.network import ItemBatch


def valid_pairs(rows_B: Tensor, partners: int | None) -> Tensor:
    """QuaSID's conflict-aware valid pair mask (CVPM, arXiv 2603.00632): M = M_i2i M_item, bool [B, B].

    False for an item and its own partner, and for places that hold the same item, hence also on the diagonal.
    """
    valid_BB = rows_B[:, None] != rows_B
    if partners is not None:
        anchors_P = torch.arange(partners, device=rows_B.device)
        valid_BB[anchors_P, anchors_P + partners] = False
        valid_BB[anchors_P + partners, anchors_P] = False
    return valid_BB


def repelled_once(batch: ItemBatch, mask_valid: bool) -> Tensor:
    """bool [B, B], True for i < j that may be repelled: the valid pairs, or without the mask all."""
    rows_B = batch.rows_B
    if mask_valid:
        return valid_pairs(rows_B, batch.partners).triu(diagonal=1)
    return torch.ones(len(rows_B), len(rows_B), dtype=torch.bool, device=rows_B.device).triu(diagonal=1)


def shared_levels(codes_BL: Tensor) -> Tensor:
    """uint8 [B, B]: in how many levels two items have the same code, or L less their Hamming distance."""
    codes_LB = codes_BL.T.to(torch.int32).contiguous()
    shared_BB = torch.zeros(len(codes_BL), len(codes_BL), dtype=torch.uint8, device=codes_BL.device)
    for codes_B in codes_LB:
        shared_BB += codes_B[:, None] == codes_B
    return shared_BB
