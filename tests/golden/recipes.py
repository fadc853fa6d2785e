"""The recipes of the golden set: those of launch/recipes made small, and those of cases.yaml. As files, in a folder."""

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
STARTING = HERE.parents[1] / "launch" / "recipes"
STARTING_NAMES = ("demo", "demo_hid", "criteo", "movielens", "amazon_beauty")
CASES = yaml.safe_load((HERE / "cases.yaml").read_text())
LEARNERS = yaml.safe_load((HERE / "learners.yaml").read_text())

Tree = dict[str, Any]


def starting_recipe(name: str) -> Tree:
    """A starting recipe, whole but for what ties it to its own data: paths, batch size, and columns of the context."""
    tree = yaml.safe_load((STARTING / f"{name}.yaml").read_text())
    data = {"path": "data", "catalog": "catalog", "batch_size": 64, "workers": 0}
    if name == "criteo":
        data |= {"path": "criteo", "catalog": "criteo-catalog", "batch_size": 48}
        tree["tokenizer"]["learner"]["codebook_size"] = 4
    tree = merged(tree, {"data": data, "train": {"runs": "runs", "log_every": 1}})
    return tree | {"name": f"starting_{name}"}


def case_recipe(name: str) -> Tree:
    """A recipe of cases.yaml."""
    case = CASES["alone"].get(name) or CASES["two_ranks"][name]
    return {"name": name, **merged(CASES["base"], case)}


def learner_recipe(name: str) -> Tree:
    """A recipe whose fit is that of learners.yaml."""
    tree = merged(CASES["base"], {"data": {"catalog": f"fitted/{name}"}})
    return {"name": name, **tree, "tokenizer": LEARNERS[name]}


def write_recipe(tree: Tree, folder: Path) -> str:
    """Writes FOLDER/NAME.yaml. Returns its name."""
    path = folder / f"{tree['name']}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path.name


def merged(base: Tree, over: Tree) -> Tree:
    """`over` laid over `base`, section by section; a section with a kind is replaced whole."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict) and "kind" not in value
        result[key] = merged(result[key], value) if both else value
    return result
