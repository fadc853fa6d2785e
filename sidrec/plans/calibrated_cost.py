"""What a plan costs on a machine that was calibrated: its work, at what each kind of work was measured to take there.

Shapes: W ranks, K kinds of work.
"""

from collections.abc import Sequence

import numpy as np
from torchrec.distributed.planner.types import ShardingOption

from sidrec.plans.calibration import Calibration
from sidrec.plans.cost import Cost
from sidrec.plans.hardware import Hardware
from sidrec.plans.work import KINDS, placed_tables, plan_work, table_work
from sidrec.plans.workload import Workload

LOOKUPS = ("looked_up_ids", "looked_up_bytes", "updated_bytes", "pooled_bags")
INPUTS = ("sent_ids", "sorted_ids")
REPLICAS = "replicated_bytes"
OUTPUTS = ("exchanged_bytes", "reduced_bytes", REPLICAS)


class CalibratedCost:
    """Rates plans by a calibration. Unlike TorchRec's model it also counts what a collection's collectives cost at all,
    whatever is in them, the sending of ids, and the dense layers; it does not tell forward from backward."""

    name = "calibrated"

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    @property
    def knows_replicas(self) -> bool:
        """Where replicated tables were measured."""
        return all(fit.milliseconds.get(REPLICAS, 0.0) > 0 for fit in self._calibration.worlds.values())

    def margin(self, world: int) -> float:
        """How far the fit is off between plans of one model."""
        return self._calibration.fit_for(world).spread

    def rate(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> Cost:
        """Parts of a table: `lookups`, forward and backward; `input_dist`; `comms`, of embeddings and gradients."""
        cost_K = self._calibration.fit_for(hardware.world).costs()
        tables = placed_tables(options)
        work_WK = {table.table: table_work(table, workload.loads[table.table], hardware.world) for table in tables}
        rank_W = plan_work(tables, workload, hardware.world) @ cost_K
        return Cost(
            step=float(rank_W.max()),
            ranks=rank_W.tolist(),
            tables={name: (each_WK @ cost_K).tolist() for name, each_WK in work_WK.items()},
            parts={name: _parts(each_WK, cost_K) for name, each_WK in work_WK.items()},
        )


def _parts(work_WK: np.ndarray, cost_K: np.ndarray) -> dict[str, float]:
    cost_WK = work_WK * cost_K
    dearest_K = cost_WK[cost_WK.sum(axis=1).argmax()]
    named = dict(zip(KINDS, dearest_K.tolist(), strict=True))
    return {
        part: sum(named[kind] for kind in kinds)
        for part, kinds in (("lookups", LOOKUPS), ("comms", OUTPUTS), ("input_dist", INPUTS))
    }
