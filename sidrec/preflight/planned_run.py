"""A run as it is planned: everything that the checks of memory and disk reckon from, and nothing that is allocated."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torchrec.distributed.types import ModuleSharder, ShardingPlan

from sidrec.config import Recipe
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import ItemTables
from sidrec.data.loader import columns_of
from sidrec.data.rows import Columns
from sidrec.data.worker import PER_BAG
from sidrec.plans.hardware import Hardware
from sidrec.plans.workload import Workload
from sidrec.preflight.step_memory import BatchShape
from sidrec.schema import Manifest


@dataclass(frozen=True)
class PlannedRun:
    """unique_items: item bags that a rank's step is expected to have. plan: who will hold which table.

    hardware: how many ranks there are, and on how many machines.
    """

    recipe: Recipe
    manifest: Manifest
    tables: ItemTables
    sizes: Sizes
    workload: Workload
    unique_items: float
    hardware: Hardware
    plan: ShardingPlan
    sharders: Sequence[ModuleSharder[nn.Module]]

    @cached_property
    def columns(self) -> Columns:
        """What is read of the log."""
        return columns_of(self.recipe.data, self.recipe.model, self.manifest)

    @cached_property
    def batch(self) -> BatchShape:
        """A rank's batch, every item of it known."""
        widths = {
            name: values.shape[1] if hasattr(values, "shape") else 0 for name, values in self.tables.per_item.items()
        }
        if "content_UV" in widths:
            widths["content_UV"] = self.sizes.content
        return BatchShape(
            rows=max(1, self.recipe.data.batch_size // self.hardware.world),
            bags=1 + round(self.unique_items),
            history=self.recipe.data.history_length,
            dense=self.sizes.dense,
            stats=len(self.sizes.stats_mean),
            item_features=self.tables.features,
            context=tuple(self.sizes.context_rows),
            per_item={name: widths.get(name, 0) for name in PER_BAG},
        )

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Splits that are scored, each once."""
        best = self.recipe.checkpoint.best
        return tuple(dict.fromkeys((*self.recipe.evaluate.splits, *((best.split,) if best else ()))))
