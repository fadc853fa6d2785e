"""`sidrec init [NAME [FILE]]`: lists the starting recipes, or writes one of them."""

from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import tyro

from sidrec.command_line import describe, metavar, parse
from sidrec.config.section import section
from sidrec.errors import ConfigError
from sidrec.text import did_you_mean, text_table

HELP = describe(
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


def main(argv: Sequence[str]) -> None:
    """Lists or writes. Raises ConfigError for an unknown name and for a file that exists."""
    options = parse(InitOptions, argv, "sidrec init", HELP)
    recipes = _recipes()
    if options.name is None:
        print(text_table([(name, _summary(recipe)) for name, recipe in recipes.items()], left=2))
        return
    if options.name not in recipes:
        known = f"expected one of the recipes {', '.join(recipes)}, got {options.name!r}"
        raise ConfigError(f"sidrec init: {known}{did_you_mean(options.name, recipes)}")
    target = options.file or Path(f"{options.name}.yaml")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("x") as file:
            file.write(recipes[options.name].read_text())
    except FileExistsError:
        raise ConfigError(f"{target}: expected no such file yet, got one; name another FILE") from None
    print(f"{target}: edit it, or start with the commands in its first lines")


def _recipes() -> dict[str, Traversable]:
    """Recipes by name, from launch/recipes: beside the package in a checkout, inside it in an installed wheel."""
    package = files("sidrec")
    folders = (Path(str(package)).parent / "launch" / "recipes", package / "launch" / "recipes")
    folder = next(folder for folder in folders if folder.is_dir())
    found = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in found if file.name.endswith(".yaml")}


def _summary(recipe: Traversable) -> str:
    """The first line, which says what the recipe trains."""
    return recipe.read_text().splitlines()[0].removeprefix("# ")
