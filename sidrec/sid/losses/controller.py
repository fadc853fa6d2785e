"""How strongly an item is drawn to its behaviour vector (ADC-SID, arXiv 2510.25622, eq. 17). Shapes: B items."""

import torch
from torch import Tensor

from sidrec.config.sid_losses import AlignmentController


def alignment_strength(scaled_norm_B: Tensor, controller: AlignmentController) -> Tensor:
    """w = sigmoid(alpha n - beta) / sigmoid(alpha - beta) [B]: 1 at the greatest norm, n = 1, and near 0 at the least.

    scaled_norm_B: n, norms of behaviour vectors scaled to [0, 1] over all items; 0 for items without one.
    """
    greatest = torch.sigmoid(scaled_norm_B.new_tensor(controller.alpha - controller.beta))
    return torch.sigmoid(controller.alpha * scaled_norm_B - controller.beta) / greatest
