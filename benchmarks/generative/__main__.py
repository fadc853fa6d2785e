"""How well can a catalog's SIDs be generated: `python -m benchmarks.generative CATALOG DATA --out RESULT.json`.

A compact encoder-decoder after TIGER reads the SIDs of what a user liked and generates the next item's, by a beam
search along the SIDs that exist. Positives of all splits of DATA/log, in time order, are the users' sequences.

Two protocols, since a tokenizer that learns from behaviour must not have seen what is to be predicted:

log-split      Predict each user's first event of the log's test split from his events before it. Behaviour vectors and
               item pairs come from the train split alone, so this is fair to every tokenizer. Users with no event
               before the test split are counted and left out. In a log that is cut in time, no event of anybody later
               than the cut is known; in one that is cut per user, others' later events are (the result says which).
leave-one-out  Predict each user's last event, as the literature does. Many of these events lie in the train split, so
               a tokenizer with behaviour vectors or item pairs has seen them: refused, unless none of them lies there.
               Content alone is safe. Later events of other users are known.

That the catalog was fitted on DATA's own behaviour vectors cannot be checked: use one data folder for both.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.generative.result import Settings
from benchmarks.generative.run import evaluate_catalog
from sidrec.errors import SidrecError


@dataclass(frozen=True)
class Command:
    """Generative retrieval with a catalog's SIDs; a result that is there already is not computed again."""

    catalog: tyro.conf.Positional[Path]
    """Catalog folder, as `sidrec fit` makes it."""
    data: tyro.conf.Positional[Path]
    """Data folder with log/."""
    out: Path
    """The JSON to write."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)


def main() -> int:
    """Returns the exit status: 2, after one sentence, for what cannot be evaluated."""
    command = tyro.cli(Command, prog="python -m benchmarks.generative", description=__doc__)
    try:
        evaluate_catalog(command.catalog, command.data, command.out, command.settings)
    except (SidrecError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
