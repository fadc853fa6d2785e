"""What the campaigns train: a recipe, a synthetic log for it and a catalog of its items."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from sidrec.config import Recipe, load_file, save

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("subject.yaml")
WORLD = ("--rows", "12000", "--users", "200", "--items", "400", "--days", "30", "--branching", "4")


def make_subject(folder: Path, seed: int) -> Recipe:
    """Makes data and catalog under `folder`, and gives the recipe that trains on them. Raises CalledProcessError."""
    recipe = load_file(RECIPE)
    data = replace(recipe.data, path=folder / "data", catalog=folder / "catalog")
    recipe = replace(recipe, data=data, train=replace(recipe.train, runs=folder / "runs"))
    if not data.path.exists():
        command = (sys.executable, "-m", "data_prep.synthetic", str(data.path), *WORLD, "--seed", str(seed))
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    path = folder / "recipe.yaml"
    save(recipe, path)
    subprocess.run((sys.executable, "-m", "sidrec", "fit", str(path)), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return recipe
