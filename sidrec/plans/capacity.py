"""What tables may fill of each rank's memory: what TorchRec's planner leaves after its reservation for all else."""

import warnings

from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import PlannerError, Storage, Topology

from sidrec.config import ConfigError
from sidrec.plans.hardware import Hardware
from sidrec.plans.options import Sharders, quiet, table_constraint
from sidrec.plans.workload import Workload

MARGIN = 0.15
"""Share of a GPU's memory that is kept free, as TorchRec's planner does."""


class NoPlanError(ConfigError):
    """No plan fits. The message says what lacks how much, and what would help."""


def reservation() -> HeuristicalStorageReservation:
    """TorchRec's default: MARGIN, six times the dense parameters, and twenty times a batch's ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return HeuristicalStorageReservation(percentage=MARGIN)


def table_room(workload: Workload, hardware: Hardware, sharders: Sharders) -> Storage:
    """Bytes of one rank that are left for tables. Raises NoPlanError where there is less than nothing."""
    constraints = {name: table_constraint(workload, hardware, name) for name in workload.tables}
    with quiet():
        try:
            topology: Topology = reservation().reserve(
                topology=hardware.topology(),
                batch_size=workload.rows_per_rank,
                module=workload.model,
                sharders=list(sharders),
                constraints=constraints,
            )
        except PlannerError:
            topology = None
    room = topology.devices[0].storage if topology else Storage(hbm=-1, ddr=0)
    if room.hbm < 0 or room.ddr < 0:
        raise NoPlanError(_nothing_left(workload, hardware))
    return room


def _nothing_left(workload: Workload, hardware: Hardware) -> str:
    cap = hardware.ddr if hardware.device == "cpu" else hardware.hbm
    ids = sum(load.bags * sum(load.ids_per_bag) for load in workload.loads.values())
    return (
        f"memory of a rank of {hardware.name}: expected room for tables beside the dense layers "
        f"({6 * 4 * workload.dense_parameters:,} bytes reserved) and the batches ({20 * 8 * ids:,.0f} bytes reserved), "
        f"got {cap:,} bytes in all; fewer rows per step or more memory would help"
    )
