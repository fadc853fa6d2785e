"""`sidrec train RECIPE [flags]`: trains a recipe and evaluates it, in this process or on the ranks of torchrun."""

from collections.abc import Sequence

from sidrec.cli.arguments import RecipeOptions, read_before_ranks, recipe_and_options
from sidrec.command_line import describe

PROGRAM = "sidrec train"
HELP = describe(
    "Trains a recipe from its newest checkpoint, or from the start, and evaluates it.",
    "sidrec train demo.yaml --seed 3 --train.epochs 2",
    "torchrun --nproc-per-node 2 -m sidrec.train demo.yaml",
)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0, or a signal's. Raises SidrecError on all ranks together."""
    read = read_before_ranks(lambda: recipe_and_options(RecipeOptions, argv, PROGRAM, HELP)[0])

    from sidrec.parallel.process_group import joined_ranks, run_on_all_ranks
    from sidrec.train.run import train

    with joined_ranks() as ranks:
        return train(run_on_all_ranks(ranks, read), ranks)
