"""From the recipe's item section to the module that represents items."""

from sidrec.config.item import ContentItem, GateSidItem, HidAndSidItem, HidItem, Item, SidCoordItem, SidItem
from sidrec.config.pooling import Pooling
from sidrec.model.items.content import ContentRepresentation
from sidrec.model.items.gate_sid import GateSidRepresentation
from sidrec.model.items.hid import HidRepresentation
from sidrec.model.items.hid_and_sid import HidAndSidRepresentation
from sidrec.model.items.representation import ItemRepresentation
from sidrec.model.items.sid import SidRepresentation
from sidrec.model.items.sid_coord import SidCoordRepresentation
from sidrec.model.sizes import Sizes


def build_item(config: Item, pooling: Pooling, dim: int, sizes: Sizes) -> ItemRepresentation:
    """The module that `config` names, its histories pooled as `pooling` says."""
    match config:
        case HidItem():
            return HidRepresentation(pooling, dim)
        case SidItem():
            return SidRepresentation(config, pooling, dim, sizes.sid_features)
        case HidAndSidItem():
            return HidAndSidRepresentation(config, pooling, dim, sizes.sid_features)
        case SidCoordItem():
            return SidCoordRepresentation(config, pooling, dim, sizes)
        case GateSidItem():
            return GateSidRepresentation(config, dim, sizes)
        case ContentItem():
            return ContentRepresentation(config, pooling, dim, sizes.content)
