"""`sidrec doctor [RECIPE [flags]]`: checks whether this machine can train, and whether a recipe is ready for it.

Works on a machine where torch cannot be imported: what imports it is imported after the machine's own checks pass.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import PositiveInt

from sidrec.cli.arguments import recipe_and_options
from sidrec.command_line import describe, metavar, parse
from sidrec.config import Recipe
from sidrec.config.section import section
from sidrec.errors import ConfigError
from sidrec.text import did_you_mean

if TYPE_CHECKING:
    from sidrec.preflight import Finding

PROGRAM = "sidrec doctor"
HELP = describe(
    "Checks this machine; with RECIPE, also whether the recipe fits it and its data is sound.",
    "sidrec doctor",
    "sidrec doctor demo.yaml --world 2 --measure",
)


@section
class DoctorOptions:
    """What to check."""

    recipe: tyro.conf.Positional[Annotated[Path | None, metavar("[RECIPE]", "the machine alone")]] = None
    """Recipe (YAML) to check on this machine."""
    json: bool = False
    """Print a JSON list of findings instead of the table."""
    world: Annotated[PositiveInt | None, metavar("RANKS", "one for each GPU, or 1")] = None
    """Ranks to train on, all on this machine."""
    measure: bool = False
    """Train some steps, to estimate how long the run will take."""
    all_files: bool = False
    """Read all rows and files instead of a sample."""


def doctor(argv: Sequence[str], examine: "Callable[[], list[Finding]] | None" = None) -> int:
    """Prints the table, or JSON. Returns 1 if anything is a problem.

    examine: takes the place of `sidrec.doctor.machine_checks.examine`.

    Raises ConfigError for a recipe or flag that cannot be used.
    """
    recipe, options = _read(argv)

    from sidrec.doctor import machine_checks
    from sidrec.preflight import Finding, problems, table

    findings = (examine or machine_checks.examine)()
    if recipe is not None:
        broken = [finding.name for finding in problems(findings) if finding.name in ("stack", "fused lookup")]
        if broken:
            findings.append(Finding("recipe", "problem", f"not looked at before this is repaired: {', '.join(broken)}"))
        else:
            from sidrec.doctor.recipe_checks import examine_recipe

            findings += examine_recipe(recipe, options.world, measured=options.measure, all_files=options.all_files)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print(table(findings, "ready to train"))
    return 1 if problems(findings) else 0


def _read(argv: Sequence[str]) -> tuple[Recipe | None, DoctorOptions]:
    if argv and not argv[0].startswith("-"):
        return recipe_and_options(DoctorOptions, argv, PROGRAM, HELP)
    own = [f"--{field.name.replace('_', '-')}" for field in fields(DoctorOptions) if field.name != "recipe"]
    for word in argv:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in (*own, *(f"--no-{name[2:]}" for name in own), "--help"):
            near = did_you_mean(flag, own)
            raise ConfigError(f"{PROGRAM}: expected a recipe before flags of one, got {flag}{near}")
    options = parse(DoctorOptions, argv, PROGRAM, HELP)
    if options.recipe:
        raise ConfigError(f"{PROGRAM}: expected RECIPE before options, got {' '.join(argv)}")
    return None, options
