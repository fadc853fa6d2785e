"""`sidrec prep SOURCE ...`: prepares data with the commands of data_prep."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from sidrec.command_line import Subcommands

SOURCES = {
    "movielens": "MovieLens (latest-small, 1M, 20M, 25M, 32M) to log/ and items.parquet",
    "amazon": "Amazon reviews (2014, 2018, 2023 and CSV) to log/ and items.parquet",
    "interactions": "any CSV or Parquet log to log/ and items.parquet",
    "synthetic": "a synthetic world whose best AUC is known",
    "criteo": "Criteo's click logs to the .npy files of TorchRec's Criteo data set",
    "criteo-log": "prepared Criteo files to log/ and items.parquet, one column as the item",
    "item-vectors": "add a vector column to items.parquet",
    "behavior": "add behavior vectors and item pairs from the train split",
}
"""Sources; the module of data_prep has the same name, with _ for -."""

COMMANDS = Subcommands("sidrec prep", "Prepares data: raw files in, log/ and items.parquet out.", SOURCES)


def main(argv: Sequence[str]) -> int:
    """Runs `python -m data_prep.SOURCE` with the other arguments. Returns its exit status."""
    source, words = COMMANDS.choose(argv)
    module = f"{data_prep()}.{source.replace('-', '_')}"
    before, sys.argv = sys.argv, [f"sidrec prep {source}", *words]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    finally:
        sys.argv = before
    return 0


def data_prep() -> str:
    """The package's name: the top-level folder of a checkout, sidrec.data_prep in an installed wheel."""
    root = Path(__file__).parents[2]
    if not (root / "data_prep" / "__init__.py").is_file():
        return "sidrec.data_prep"
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return "data_prep"
