"""A recipe and its flags as arguments of a command, read before torch is imported."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from sidrec.command_line import metavar, parse
from sidrec.config import Recipe, load, load_file, load_mapping
from sidrec.config.load import FLAGS
from sidrec.config.section import section
from sidrec.errors import ConfigError

T = TypeVar("T")

RecipeFile = tyro.conf.Positional[Annotated[Path, metavar("RECIPE")]]


@section
class RecipeOptions:
    """Arguments of a command that has a recipe and no options of its own; the base of those that have some."""

    recipe: RecipeFile
    """Recipe (YAML). `sidrec init` writes one to start from, `sidrec recipe explain` describes its keys."""


def recipe_and_options(kind: type[T], words: Sequence[str], program: str, description: str) -> tuple[Recipe, T]:
    """The recipe that the arguments name, changed by their flags, and the command's own options.

    kind: a section with a field `recipe`. Raises ConfigError; SystemExit(0) after --help, which lists the options and
    every value of the recipe that a flag replaces.
    """
    if any(word in ("-h", "--help") for word in words):
        _help(kind, words, program, description)
    options, flags = parse(kind, _recipe_first(words, kind, program), program, description, others=True)
    path = str(options.recipe)  # type: ignore[attr-defined]
    return load([path, *flags], program), options


def read_before_ranks(read: Callable[[], T]) -> Callable[[], T]:
    """Calls `read` at once in a single process, so that a mistake is reported before torch is imported.

    Returns a function that returns the result. Ranks of torchrun call `read` later, inside `run_on_all_ranks`, so that
    all of them exit with one message.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return read
    found = read()
    return lambda: found


def check_subject(subject: str) -> None:
    """Raises ConfigError if `subject` is neither criteo-mlperf nor a readable YAML file."""
    if subject != "criteo-mlperf":
        load_mapping(Path(subject), "recipe or tables file")


def _recipe_first(words: Sequence[str], kind: type, program: str) -> list[str]:
    """Moves the recipe to the front. Options of the command may precede it; flags of the recipe must follow it."""
    own = {f"--{field.name.replace('_', '-')}" for field in fields(kind)}
    for place, word in enumerate(words):
        if not word.startswith("-"):
            return [word, *words[:place], *words[place + 1 :]]
        if word not in own:
            raise ConfigError(f"{program}: expected RECIPE before flags that change it, got {word}")
    raise ConfigError(f"{program}: expected a recipe file, RECIPE, got {' '.join(words) or 'nothing'}")


def _help(kind: type, words: Sequence[str], program: str, description: str) -> None:
    """Prints the help and exits. If `words` begin with a recipe file, its values are shown as defaults."""
    both: Any = dataclass(frozen=True, kw_only=True)(type("Arguments", (kind, Recipe), {"__doc__": None}))
    default = None
    if Path(words[0]).is_file():
        default = both(recipe=Path(words[0]), **vars(load_file(Path(words[0]))))
        program = f"{program} {words[0]}"
    shown: Any = tyro.conf.AvoidSubcommands
    parse(shown[both], ["--help"], program, f"{description}{FLAGS}", default)
