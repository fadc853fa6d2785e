"""`sidrec init | prep | fit`: a starting recipe, prepared data, semantic IDs."""

import os
import runpy
import sys
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated

import tyro

from sidrec.cli.arguments import RecipeOptions, read_before_ranks, recipe_and_options
from sidrec.command_line import Subcommands, describe, metavar, parse
from sidrec.config import load_file
from sidrec.config.section import section
from sidrec.errors import ConfigError
from sidrec.text import did_you_mean, quoted, text_table

INIT = describe(
    "Writes a starting recipe, with comments, or lists the recipes that there are. Never replaces a file.",
    "sidrec init",
    "sidrec init movielens",
    "sidrec init demo recipes/mine.yaml",
)


@section
class InitOptions:
    """What to write."""

    name: tyro.conf.Positional[Annotated[str | None, metavar("[NAME]", "list the recipes")]] = None
    """Recipe to write."""
    file: tyro.conf.Positional[Annotated[Path | None, metavar("[FILE]", "NAME.yaml")]] = None
    """File to write it to."""


def init(argv: Sequence[str]) -> None:
    """Lists or writes. Raises ConfigError for an unknown name and for a file that exists."""
    options = parse(InitOptions, argv, "sidrec init", INIT)
    recipes = _recipes()
    if options.name is None:
        print(text_table([(name, _summary(recipe)) for name, recipe in recipes.items()], left=2))
        return
    if options.name not in recipes:
        known = f"expected one of the recipes {', '.join(recipes)}, got {options.name!r}"
        raise ConfigError(f"sidrec init: {known}{did_you_mean(options.name, recipes)}")
    target = options.file or Path(f"{options.name}.yaml")
    if os.path.lexists(os.path.normpath(target)) or target.is_symlink():  # normpath: of NEW/.., too
        raise ConfigError(f"{quoted(target)}: expected no such file yet, got one; name another FILE")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("x", encoding="utf-8") as file:
        file.write(recipes[options.name].read_text(encoding="utf-8"))
    steps = [*_preparation(recipes[options.name]), f"sidrec train {target}"]
    if load_file(target).model.item.sids is not None:
        steps.insert(-1, f"sidrec fit {target}")
    print("\n  ".join([f"{target}: edit it, then run", *steps]))


def _recipes() -> dict[str, Traversable]:
    """Recipes by name, from launch/recipes: beside the package in a checkout, inside it in an installed wheel."""
    package = files("sidrec")
    folders = (Path(str(package)).parent / "launch" / "recipes", package / "launch" / "recipes")
    folder = next(folder for folder in folders if folder.is_dir())
    found = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in found if file.name.endswith(".yaml")}


def _summary(recipe: Traversable) -> str:
    """The first line: a summary of the recipe."""
    return recipe.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def _preparation(recipe: Traversable) -> list[str]:
    """The commands in its first comment, which prepare its data."""
    return [
        line.removeprefix("#   ") for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#   ")
    ]


# sidrec prep: prepares data with the commands of data_prep.


SOURCES = {
    "movielens": "MovieLens (latest-small, 100K, 1M, 20M, 25M, 32M) to log/ and items.parquet",
    "amazon": "Amazon reviews (2014, 2018, 2023 and CSV) to log/ and items.parquet",
    "interactions": "any CSV or Parquet log to log/ and items.parquet",
    "adopt": "a log that your own job wrote as Parquet: check it, describe it",
    "synthetic": "a synthetic world whose best AUC is known",
    "criteo": "Criteo's click logs to the .npy files of TorchRec's Criteo data set",
    "criteo-log": "prepared Criteo files to log/ and items.parquet, one column as the item",
    "item-vectors": "add a vector column to items.parquet",
    "behavior": "add behavior vectors and item pairs from the train split",
}
"""Sources; the module of data_prep has the same name, with _ for -."""

PREP = Subcommands("sidrec prep", "Prepares data: raw files in, log/ and items.parquet out.", SOURCES)


def prep(argv: Sequence[str]) -> int:
    """Runs `python -m data_prep.SOURCE` with the other arguments. Returns its exit status."""
    source, words = PREP.choose(argv)
    module = f"{data_prep()}.{source.replace('-', '_')}"
    before, sys.argv = sys.argv, [f"sidrec prep {source}", *words]
    main, sys.modules["__main__"] = sys.modules["__main__"], _as_main(module)
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    finally:
        sys.argv, sys.modules["__main__"] = before, main
    return 0


def _as_main(module: str) -> ModuleType:
    """An empty `__main__` that names the module's file, where tyro looks for the descriptions of its flags."""
    spec = find_spec(module)
    assert spec is not None, "every source has a module"
    main = ModuleType("__main__")
    main.__spec__, main.__file__ = spec, spec.origin
    return main


def data_prep() -> str:
    """The package's name: the top-level folder of a checkout, sidrec.data_prep in an installed wheel."""
    root = Path(__file__).parents[2]
    if not (root / "data_prep" / "__init__.py").is_file():
        return "sidrec.data_prep"
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return "data_prep"


# sidrec fit: learns semantic IDs.


FIT = describe(
    "Learns semantic IDs from the vector columns of items.parquet, writes the catalog and prints its quality. A fit "
    "that was killed continues where it was.",
    "sidrec fit demo.yaml --overwrite",
    "sidrec fit tomorrow.yaml --extend runs/catalog",
)


@section
class FitOptions(RecipeOptions):
    """What to fit."""

    overwrite: bool = False
    """Replace a catalog that holds other codes."""
    extend: Annotated[Path | None, metavar("CATALOG", "fit anew")] = None
    """Catalog to extend: its codes stay, and its frozen tokenizer encodes the items that it lacks."""


def fit(argv: Sequence[str]) -> None:
    """Fits on one process or the ranks of torchrun.

    Raises SidrecError on all ranks together; no catalog is left behind then.
    """
    read = read_before_ranks(lambda: recipe_and_options(FitOptions, argv, "sidrec fit", FIT))

    from sidrec.fit import extend_catalog, fit_catalog
    from sidrec.parallel.process_group import joined_ranks, run_on_all_ranks

    with joined_ranks() as ranks:
        recipe, options = run_on_all_ranks(ranks, read)
        if options.extend is not None:
            extend_catalog(recipe, options.extend, ranks, overwrite=options.overwrite)
        else:
            fit_catalog(recipe, ranks, overwrite=options.overwrite)
