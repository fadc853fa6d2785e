"""`sidrec fit RECIPE [flags]`: learns semantic IDs from item vectors, on one process or the ranks of torchrun."""

import sys
from collections.abc import Sequence

from sidrec.cli.arguments import RecipeOptions, read_before_ranks, recipe_and_options
from sidrec.command_line import describe
from sidrec.config.section import section

PROGRAM = "sidrec fit"
HELP = describe(
    "Learns semantic IDs from the vector columns of items.parquet, writes the catalog and prints its quality. A fit "
    "that was killed continues where it was.",
    "sidrec fit demo.yaml --overwrite",
)


@section
class FitOptions(RecipeOptions):
    """What to fit."""

    overwrite: bool = False
    """Replace a catalog that holds other codes."""


def main(argv: Sequence[str]) -> None:
    """Raises SidrecError on all ranks together; no catalog is left behind then."""
    read = read_before_ranks(lambda: recipe_and_options(FitOptions, argv, PROGRAM, HELP))

    from sidrec.fit import fit_catalog
    from sidrec.parallel.process_group import joined_ranks, run_on_all_ranks

    with joined_ranks() as ranks:
        recipe, options = run_on_all_ranks(ranks, read)
        fit_catalog(recipe, ranks, overwrite=options.overwrite)


if __name__ == "__main__":
    from sidrec import cli

    sys.exit(cli.main(["fit", *sys.argv[1:]]))
