"""`sidrec doctor [RECIPE [flags]]`: can this machine train, and is a recipe ready to be trained on it?

What imports torch is imported once the machine is known to bear it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from sidrec.config import ConfigError, load
from sidrec.doctor.machine_checks import examine
from sidrec.preflight.planned_run import Finding, problems, table

ABOUT = "Check this machine; with RECIPE, also whether that recipe fits it and its data is sane."


def main(argv: Sequence[str]) -> int:
    """Prints the table, or JSON. Returns 1 if anything is a problem.

    Raises ConfigError for a recipe or flag that cannot be used.
    """
    recipe = [argv[0]] if argv and not argv[0].startswith("-") else []
    arguments, flags = _parser().parse_known_args(argv[len(recipe) :])
    if flags and not recipe:
        raise ConfigError(f"sidrec doctor: expected a recipe before flags of one, got {flags[0]}")
    loaded = load([*recipe, *flags], "sidrec doctor", ABOUT) if recipe else None
    findings = examine()
    if loaded is not None:
        found = [finding.name for finding in problems(findings) if finding.name in ("stack", "fused lookup")]
        if found:
            findings.append(Finding("recipe", "problem", f"not looked at before this is repaired: {', '.join(found)}"))
        else:
            from sidrec.doctor.recipe_checks import examine_recipe

            findings += examine_recipe(
                loaded, arguments.world, measured=arguments.measure, all_files=arguments.all_files
            )
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print(table(findings, "ready to train"))
    return 1 if problems(findings) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidrec doctor", usage="sidrec doctor [RECIPE [flags]]", description=ABOUT, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list of findings instead of the table")
    parser.add_argument("--world", type=_ranks, help="ranks to train on, all on this machine; else its GPUs, or 1")
    parser.add_argument("--measure", action="store_true", help="train some steps, to know how long the run will take")
    parser.add_argument("--all-files", action="store_true", help="read all rows and files, and not a sample of them")
    return parser


def _ranks(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)
