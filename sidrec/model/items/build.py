"""From the recipe's item section to the module that represents items."""

from torch import Tensor

from sidrec.config.item import HidItem, Item, SidCoordItem, SidItem
from sidrec.config.pooling import Pooling
from sidrec.model.items.hid import HidRepresentation
from sidrec.model.items.representation import ItemRepresentation
from sidrec.model.items.sid import SidRepresentation
from sidrec.model.items.sid_coord import SidCoordRepresentation


def build_item(config: Item, pooling: Pooling, dim: int, mean_S: Tensor, std_S: Tensor) -> ItemRepresentation:
    """The module that `config` names, its histories pooled as `pooling` says.

    mean_S, std_S: moments of log1p(statistics) over the train split.
    """
    match config:
        case HidItem():
            return HidRepresentation(pooling, dim)
        case SidItem():
            return SidRepresentation(config, pooling, dim)
        case SidCoordItem():
            return SidCoordRepresentation(config, pooling, dim, mean_S, std_S)
