"""What SIDs add to a converged ranker, day forward, on real logs: `python -m benchmarks.day_forward beauty yelp mind`.

For each set of the claim's studies (data/claim, `benchmarks.claim_data`):

1. A ranker of HIDs alone is trained on the train split, in the order of time, with the settings that the claim's search
   found best for HIDs alone on validation (`results/claim/best.yaml`), and kept as its checkpoint.
2. `sidrec study --checkpoint` goes on from these weights over the periods of validation and test, cut into PARTS of
   equal length: the twin, and the same with `preset: recommended`, at 1, 1/4 and 1/10 of the HID table's bytes. Each
   part is scored by the models of the part before; the first is only trained on.

The settings were chosen for the twin, on rows of the first parts; nothing was chosen for the form with SIDs, which
takes them over. Recorded in results/day_forward_SET: day_forward.json and report.md; cells of single models stay in
runs/day_forward. A command that was stopped goes on.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import RESULTS
from benchmarks.results_page import tuned_study
from sidrec.cli.dispatch import main as sidrec
from sidrec.config.load import load_mapping
from sidrec.io.files import write_text
from sidrec.study.jobs import merge, variant_recipe

WORK = Path("runs/day_forward")
PARTS = {"beauty": 6, "yelp": 6, "mind": 4}
"""Of the log after train; MIND's are half days."""
SIZES = ("1", "4", "10")


def hid_recipe(name: str) -> dict[str, Any]:
    """The set's recipe for HIDs alone with the claim's settings, trained on train."""
    own = {"name": name, "data": {"train_on": ["train"]}, "train": {"runs": str(WORK / "start")}}
    return merge(variant_recipe(tuned_study("claim"), name, "hid_only"), own)


def compare(name: str, runs: int) -> int:
    """Trains the ranker of HIDs alone if it is not there, and compares. Returns the exit status."""
    recipe, start = WORK / f"{name}.yaml", WORK / "start" / name / "seed0"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_text(recipe, yaml.safe_dump(hid_recipe(name), sort_keys=False))
    if status := sidrec(["train", str(recipe)]):
        return status
    folders = ["--results", str(WORK / "results"), "--work", str(WORK / "work"), "--name", name]
    question = ["--log", str(load_mapping(recipe, "a recipe")["data"]["path"]), "--days", str(PARTS[name])]
    asked = ["study", "--checkpoint", str(start), *question, "--runs", str(runs), "--sizes", *SIZES, *folders]
    if status := sidrec(asked):
        return status
    recorded = RESULTS / f"day_forward_{name}"
    recorded.mkdir(parents=True, exist_ok=True)
    for file in ("day_forward.json", "report.md"):
        shutil.copyfile(WORK / "results" / name / file, recorded / file)
    return 0


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.day_forward",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sets", nargs="+", choices=list(PARTS))
    parser.add_argument("--runs", type=int, default=6, help="seeds and catalog fits (6)")
    options = parser.parse_args(argv)
    return max(compare(name, options.runs) for name in options.sets)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
