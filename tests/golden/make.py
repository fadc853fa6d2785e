"""Makes the whole golden set again: `python -m tests.golden.make FOLDER`.

Writes into FOLDER, which must not exist, and prints where it differs from the committed set. It never touches the
committed set: who means a difference copies the file that holds it, and says why in the commit. Losses and artifacts
of a release are not replaced by those of a later one.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.golden import golden_set, losses, outputs, product, recipes
from tests.golden.artifacts import ARTIFACTS, make_artifacts
from tests.golden.golden_set import EXACT, differences


def main(argv: Sequence[str]) -> int:
    """Makes the set. Returns 1 where it differs from the committed one."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.make", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write; must not exist")
    parser.add_argument(
        "--first", action="store_true", help="start from the artifacts just made, not from the committed ones"
    )
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder.absolute()
    if folder.exists() or folder == golden_set.SET:
        parser.error(f"{folder}: expected a folder that does not exist yet")
    folder.mkdir(parents=True)
    make_artifacts(folder / "artifacts")
    made = _everything(folder / "artifacts" if arguments.first else ARTIFACTS)
    for subject, content in made.items():
        golden_set.write(subject, content, folder)
    return _report(made)


def _everything(start: Path) -> dict[str, dict[str, Any]]:
    """Subject -> record. start: the artifacts that all commands are run on."""
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        work = Path(scratch) / "losses"
        shutil.copytree(start, work)
        found = {
            f"starting_{name}": losses.train(recipes.starting_recipe(name), work) for name in recipes.STARTING_NAMES
        }
        found |= {name: losses.train(recipes.case_recipe(name), work) for name in recipes.CASES["alone"]}
        two = [recipes.case_recipe(name) for name in recipes.CASES["two_ranks"]]
        found |= losses.train_on_ranks(two, work, 2) | {"plugged": losses.plugged(start / "catalog")}
        fits = {name: losses.fit(recipes.learner_recipe(name), work) for name in recipes.LEARNERS}
        commands = {}
        for name in outputs.CASES:
            shutil.copytree(start, Path(scratch) / name)
            commands[name] = outputs.record(name, Path(scratch) / name)
    said = {name: entry.pop("said") for name, entry in commands.items()}
    return {"machine": product.machine(), "losses": found, "learners": fits, "commands": commands, "said": said}


def _report(made: dict[str, dict[str, Any]]) -> int:
    different = 0
    for subject, content in made.items():
        if not (golden_set.SET / f"{subject}.json").exists():
            print(f"{subject}: not in the committed set")
            continue
        found = differences(golden_set.read(subject), content, EXACT)
        different += len(found)
        print(f"{subject}: {len(found)} differences")
        print("".join(f"  {line}\n" for line in found), end="")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
