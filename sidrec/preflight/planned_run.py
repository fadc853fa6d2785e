"""The plan of a run: the inputs of the resource estimates. Holds no allocated table."""

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
    """A recipe with its data, its sharding plan and the hardware.

    unique_items: expected item bags in a step of one rank. plan: places each table on ranks. hardware: numbers of ranks
    and machines.
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
        """Columns that are read from the log."""
        return columns_of(self.recipe.data, self.recipe.model, self.manifest)

    @cached_property
    def batch(self) -> BatchShape:
        """The largest batch of a rank."""
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
        """Splits that are evaluated, without repetition."""
        best = self.recipe.checkpoint.best
        return tuple(dict.fromkeys((*self.recipe.evaluate.splits, *((best.split,) if best else ()))))
