"""A run as it is planned: everything that the checks of memory and disk reckon from, and nothing that is allocated."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

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


# What a check found, and findings as a table.


@dataclass(frozen=True)
class Finding:
    """One line of the table. Only a problem changes the exit status; a note may name a command too."""

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    repair: str = ""


def problems(findings: Iterable[Finding]) -> list[Finding]:
    """Those that must be repaired first."""
    return [finding for finding in findings if finding.state == "problem"]


def table(findings: Sequence[Finding], last: str) -> str:
    """The findings as lines of text, each repair under its finding; then their number of problems, or `last`."""
    count = len(problems(findings))
    return "\n".join([*lines(findings), "", f"{count} problem(s)" if count else last])


def lines(findings: Sequence[Finding]) -> list[str]:
    """Name, state and what was found, in columns; the repair below."""
    width = max((len(finding.name) for finding in findings), default=0)
    told = []
    for finding in findings:
        told.append(f"{finding.name:<{width}}  {finding.state:<7}  {finding.found}")
        if finding.repair:
            told.append(f"{'':<{width}}  {'':<7}  -> {finding.repair}")
    return told
