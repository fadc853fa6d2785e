"""Recipes from YAML and flags, and back. A wrong recipe is refused with all its mistakes, each by its dotted path."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tyro
import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sidrec.command_line import parse as parse_arguments
from sidrec.config.describe import keys_at
from sidrec.config.recipe import RECIPE, Recipe
from sidrec.config.section import default_of, unused_keys_below, uris_below
from sidrec.errors import ConfigError, print_warning
from sidrec.io.places import StorePath
from sidrec.text import did_you_mean, near_file, place, quoted, short_repr

LARGEST = 1 << 20  # bytes of a file; parsing more takes many seconds
LAST_LEVEL = 9  # that a granularity can name


FLAGS = """

RECIPE is a YAML file. The options of its sections, below, are its values under the same names; a flag replaces the
recipe's value for this run. Values marked (required) must be in the recipe. A variant (kind) or a preset is chosen in
the recipe only."""


class _MappingLoader(yaml.SafeLoader):
    """YAML's safe loader that also refuses a key that occurs twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is there twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def load_file(path: Path) -> Recipe:
    """Reads a recipe. Raises ConfigError with one line per mistake."""
    return parse(load_mapping(path, "recipe"), str(path))


def load_saved(path: Path, warn: bool = False) -> Recipe:
    """Reads the config.yaml of a run that exists, which an earlier version may have written.

    Keys without effect (`unused_keys_below`) get their defaults. warn: name them on stderr. Raises ConfigError.
    """
    recipe = _validated(load_mapping(path, "recipe"), str(path))
    return _without_unused_keys(recipe, str(path) if warn else None)


def load_mapping(path: Path, what: str) -> dict[str, Any]:
    """Reads a YAML mapping from a file. what: the kind of file, for messages. Raises ConfigError."""
    where = quoted(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ConfigError(f"{where}: expected a {what} of at most {LARGEST:,} bytes, got a larger file")
        raw = yaml.load(content.decode(), Loader=_MappingLoader)
    except OSError as error:
        near = near_file(path) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{where}: expected a readable {what}, got {error.strerror}{near}") from None
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{where}: expected valid YAML, got values nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:  # invalid UTF-8, date or number
        raise ConfigError(f"{where}: expected valid YAML, got: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected a mapping of sections, got {type(raw).__name__}")
    return raw


def load(argv: Sequence[str], prog: str = "sidrec", about: str = "") -> Recipe:
    """A recipe file followed by flags for its scalars, as in `beauty.yaml --seed 3 --train.epochs 2`.

    about: what the command does, for its help. Raises ConfigError; prints help and raises SystemExit(0) on --help.
    """
    kind = tyro.conf.AvoidSubcommands[Recipe]
    if argv and argv[0] in ("-h", "--help"):
        parse_arguments(kind, ["--help"], f"{prog} RECIPE", f"{about}{FLAGS}")
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"{prog}: expected a recipe file first, got {argv[0] if argv else 'nothing'}")
    raw = load_mapping(Path(argv[0]), "recipe")
    recipe = _validated(raw, argv[0])
    if argv[1:]:
        flagged = parse_arguments(kind, argv[1:], f"{prog} {argv[0]}", f"{about}{FLAGS}", default=recipe)
        recipe = _validated(_plain(asdict(flagged)), " ".join(argv))
    if not any(word.startswith("--model.item.granularities") for word in argv):
        recipe = _with_features_of_levels(recipe, raw)
    return _refuse_unused_keys(recipe, " ".join(argv))


def save(recipe: Recipe, path: Path) -> None:
    """Writes the recipe with every default filled in; `load_file` returns an equal one."""
    path.write_text(as_yaml(recipe), encoding="utf-8")


def as_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, every default filled in."""
    return yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False)


def parse(raw: dict[str, Any], where: str) -> Recipe:
    """Plain data to a recipe; `where` names its source in errors. Raises ConfigError with one line per mistake."""
    return _refuse_unused_keys(_with_features_of_levels(_validated(raw, where), raw), where)


def _validated(raw: dict[str, Any], where: str) -> Recipe:
    """The recipe with keys that have no effect. Raises ConfigError."""
    try:
        recipe = RECIPE.validate_python(raw)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        raise _refusal(where, [f"{_prefix(mistake)}{_message(mistake)}" for mistake in mistakes]) from None
    if uris := list(uris_below(recipe)):
        raise _refusal(where, uris)
    return recipe


def _refusal(where: str, mistakes: Sequence[str]) -> ConfigError:
    return ConfigError("\n  ".join([f"{where}: {len(mistakes)} mistake(s) in the recipe", *mistakes]))


def _with_features_of_levels(recipe: Recipe, raw: Mapping[str, Any]) -> Recipe:
    """The recipe with s1, s2, .. of all levels, if it names no granularities and its learner's levels are independent.

    A run that exists keeps its granularities. raw: the recipe's file.
    """
    item, levels = recipe.model.item, recipe.tokenizer.unordered_levels
    given = "granularities" in raw.get("model", {}).get("item", {})
    if given or not levels or item.sids is None or item.sids.subwords is not None:
        return recipe
    names = tuple(f"s{level}" for level in range(1, min(levels, LAST_LEVEL) + 1))
    if (recipe.run / "config.yaml").is_file():
        saved = load_saved(recipe.run / "config.yaml").model.item.sids
        names = saved.granularities if saved else names
    changed: Any = replace(item.sids, granularities=names)
    return replace(recipe, model=replace(recipe.model, item=changed))


# Keys without effect.


def _refuse_unused_keys(recipe: Recipe, where: str) -> Recipe:
    """The recipe of a new run as it is; that of a run that exists without its keys that have no effect.

    Raises ConfigError if a new run's recipe has such keys.
    """
    unused = unused_keys_below(recipe)
    if unused and not (recipe.run / "config.yaml").is_file():
        raise _refusal(where, [f"{key}: expected {expected}" for key, expected in unused.items()])
    return _without_unused_keys(recipe, where)


def _without_unused_keys(recipe: Recipe, where: str | None) -> Recipe:
    """where: the source that the warning names; None for no warning."""
    for key, expected in unused_keys_below(recipe).items():
        if where is not None and os.environ.get("RANK", "0") == "0":
            print_warning(f"{where}: {key} has no effect and is ignored: expected {expected}")
        recipe = _with_default(recipe, key.split("."))
    return recipe


def _with_default(section: Any, path: Sequence[str]) -> Any:
    """The section with the default at a dotted key; a number in it is a place in a list."""
    name, *rest = path
    if isinstance(section, tuple):
        place = int(name)
        return (*section[:place], _with_default(section[place], rest), *section[place + 1 :])
    new = _with_default(getattr(section, name), rest) if rest else default_of(section, name)
    return replace(section, **{name: new})


# Mistakes as text.


def _prefix(mistake: ErrorDetails) -> str:
    """Dotted path of the mistake; messages about several sections name their keys themselves."""
    return f"{place(mistake['loc'])}: " if mistake["loc"] else ""


def _message(mistake: ErrorDetails) -> str:
    """pydantic's message with the value found, and the names that exist where a key or kind is unknown."""
    match mistake["type"]:
        case "value_error":  # a check of ours
            return mistake["msg"].removeprefix("Value error, ")
        case "union_tag_not_found":
            return f"expected a section with the key kind, got {short_repr(mistake['input'])}"
        case "unexpected_keyword_argument":
            *section, key = mistake["loc"]
            known = [name for name in keys_at(section) if name != "kind"]
            names = f"; expected one of {', '.join(known)}" if known else "; expected no keys"
            return f"{mistake['msg']}{names}{did_you_mean(str(key), known)}"
        case "union_tag_invalid":
            return f"{mistake['msg']}{did_you_mean(str(mistake['ctx']['tag']), keys_at(mistake['loc']))}"
        case "missing":
            return mistake["msg"]
    return f"{mistake['msg']}, got {short_repr(mistake['input'])}"


def _plain(value: Any) -> Any:
    """Contents of a dataclass as plain YAML types."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path | StorePath) else value
