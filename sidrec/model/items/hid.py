"""Items as hashed ids alone: the twin that all others are compared with.

Shapes as in `sidrec.model.items.representation`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sidrec.data.item_tables import HID
from sidrec.model.history import index_history, mean_of_history
from sidrec.model.items.representation import ItemLookup, ItemRepresentation


class HidRepresentation(ItemRepresentation):
    """Hashed ids alone: the target's embedding and the mean of the history's."""

    tables = (HID,)
    features = ("item", "history_hid")
    width = 0

    def forward(
        self, items: ItemLookup, target_B: Tensor, history_BT: Tensor, stats_BS: Tensor
    ) -> tuple[Tensor, Tensor]:
        hid_UD = items.tables[HID]
        target_BD = functional.embedding(target_B, hid_UD)
        embedded = torch.stack([target_BD, mean_of_history(hid_UD, index_history(history_BT))], dim=1)
        return embedded, stats_BS[:, :0]
