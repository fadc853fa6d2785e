"""`sidrec fit RECIPE`: from item vectors to a catalog of semantic ids, on one process or the ranks of torchrun."""

import sys
from collections.abc import Sequence

from sidrec.config import load
from sidrec.fit import fit_catalog
from sidrec.parallel.process_group import joined_ranks, run_on_all_ranks

OVERWRITE = "--overwrite"


ABOUT = (
    "Learns semantic ids from the vector columns of items.parquet, writes the catalog and prints its quality.\n"
    f"{OVERWRITE} replaces a catalog that holds other codes. A fit that was killed goes on where it was."
)


def main(argv: Sequence[str]) -> None:
    """Fits the recipe's tokenizer, writes the catalog and prints its quality.

    argv: the recipe, flags for its scalars, and --overwrite to replace a catalog that holds other codes.
    Raises ConfigError, ContractError or TrainingError, on all ranks together; no catalog is left behind then.
    """
    words = [word for word in argv if word != OVERWRITE]
    with joined_ranks() as ranks:
        recipe = run_on_all_ranks(ranks, lambda: load(words, "sidrec fit", ABOUT))
        fit_catalog(recipe, ranks, overwrite=OVERWRITE in argv)


if __name__ == "__main__":
    from sidrec import cli

    sys.exit(cli.main(["fit", *sys.argv[1:]]))
