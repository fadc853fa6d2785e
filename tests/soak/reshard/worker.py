"""What the matrix starts on each number of ranks: `python -m tests.soak.reshard.worker save|load FOLDER`.

FOLDER holds recipe.yaml, and when loading saved-*.json of every start that has saved. Rank 0 leaves STEM-RANKS.json.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from sidrec.config import load_file
from sidrec.parallel.process_group import joined_ranks
from tests.soak.reshard.runs import MIXED, TYPES, Run, load_runs, machines_of, save_runs

RANKS_PER_MACHINE = 2
KINDS = (*TYPES, MIXED)
MEASURED = ("adagrad", "rowwise_adagrad", "sgd")
RUNS: TypeAdapter[list[Run]] = TypeAdapter(list[Run])


def main(argv: Sequence[str]) -> None:
    """Saves or loads, on the ranks of torchrun."""
    action, folder = argv[0], Path(argv[1])
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(message)s", force=True)
    logging.getLogger("tests.soak").setLevel(logging.INFO)
    recipe = load_file(folder / "recipe.yaml")
    with joined_ranks() as ranks:
        machines_of(RANKS_PER_MACHINE, ranks.world)
        if action == "save":
            runs = save_runs(recipe, MEASURED, KINDS, folder / "checkpoints", ranks)
        else:
            runs = load_runs(recipe, saved_runs(folder), KINDS, folder / "checkpoints", ranks)
        if ranks.first:
            stem = "saved" if action == "save" else "loaded"
            (folder / f"{stem}-{ranks.world}.json").write_text(json.dumps([asdict(run) for run in runs]))


def saved_runs(folder: Path) -> list[Run]:
    """The runs of all starts that have saved."""
    return read_runs(folder, "saved")


def read_runs(folder: Path, stem: str) -> list[Run]:
    """The runs that the starts of a kind have left."""
    return [run for path in sorted(folder.glob(f"{stem}-*.json")) for run in RUNS.validate_json(path.read_bytes())]


if __name__ == "__main__":
    main(sys.argv[1:])
