"""`sidrec plan SUBJECT`: makes a sharding plan for hardware that need not be at hand, and explains it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import PositiveInt

from sidrec.cli.arguments import check_subject
from sidrec.command_line import describe, metavar, parse
from sidrec.config.section import section

HELP = describe(
    "Makes a sharding plan for hardware that need not be at hand, explains it, and exports it as a file that training "
    "(parallel.plan) and `sidrec bench plans` take.",
    "sidrec plan demo.yaml --hardware 8xa100 --export plan.json",
    "sidrec plan criteo-mlperf --hardware 16x8h100",
)


@section
class PlanOptions:
    """What to plan for."""

    subject: tyro.conf.Positional[Annotated[str, metavar("SUBJECT")]]
    """Recipe (YAML), tables file (YAML), or criteo-mlperf: the tables of MLPerf's DLRM-DCNv2."""
    hardware: Annotated[str | None, metavar("NAME", "cpu")] = None
    """Machines by name, such as cpu, 8xa100, 8xh100, 16x8h100."""
    device: Annotated[Literal["cpu", "cuda"] | None, metavar("{cpu,cuda}", "of --hardware")] = None
    """Instead of --hardware: CPU processes, or machines of 8 A100s."""
    world: Annotated[PositiveInt | None, metavar("RANKS", "of the hardware")] = None
    """Ranks in total."""
    local_world: Annotated[PositiveInt | None, metavar("RANKS", "of the hardware")] = None
    """Ranks of one machine."""
    hbm: Annotated[str | None, metavar("SIZE", "of the hardware")] = None
    """Memory of a GPU, as 80GB."""
    ddr: Annotated[str | None, metavar("SIZE", "of the hardware")] = None
    """Host memory of one rank, as 64GB."""
    batch_size: Annotated[PositiveInt | None, metavar("ROWS", "of the recipe or tables file")] = None
    """Rows of a step over all ranks."""
    forced: Annotated[str | None, metavar("TYPE", "the search chooses")] = None
    """One sharding type for every table."""
    calibration: Annotated[Path | None, metavar("FILE", "TorchRec's constants")] = None
    """Measured costs of these machines, as `sidrec bench calibrate` writes them."""
    export: Annotated[Path | None, metavar("FILE", "none")] = None
    """File to write the plan to; replaces a plan that exists."""
    json: bool = False
    """Print JSON instead of text."""


def main(argv: Sequence[str]) -> None:
    """Plans and explains. Raises ConfigError, ContractError, and NoPlanError if nothing fits."""
    options = parse(PlanOptions, argv, "sidrec plan", HELP)
    check_subject(options.subject)

    from sidrec.cli.explain_plan import explain_plan

    explain_plan(options)
