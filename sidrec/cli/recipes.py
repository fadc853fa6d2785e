"""`sidrec recipe | schema`: what keys mean, a recipe with every default filled in, and the JSON schema."""

import json
from collections.abc import Sequence
from typing import Annotated

import tyro

from sidrec.cli.arguments import RecipeOptions, recipe_and_options
from sidrec.command_line import Subcommands, describe, metavar, parse
from sidrec.config.describe import explain, json_schema
from sidrec.config.load import as_yaml
from sidrec.config.section import section

RECIPE = Subcommands(
    "sidrec recipe",
    "Describes recipes. `sidrec schema` prints the same as a JSON schema, for editors.",
    {
        "explain": "what a key means, what it accepts, its default; the keys of a section, the kinds of a variant",
        "show": "a recipe as YAML, with every default filled in",
    },
)
EXPLAIN = describe(
    "Explains a key of the recipe, the keys of a section, or the kinds of a variant.",
    "sidrec recipe explain model.item",
    "sidrec recipe explain model.item.sid_coord.gate",
)
SHOW = describe(
    "Prints a recipe as YAML, with every default filled in and the values that flags replace.",
    "sidrec recipe show demo.yaml --train.epochs 2",
)
SCHEMA = describe(
    "Prints the JSON schema of recipes, with a description for every key. Editors with yaml-language-server complete "
    "and check a recipe whose first line is `# yaml-language-server: $schema=recipe.schema.json`.",
    "sidrec schema > recipe.schema.json",
)


@section
class ExplainOptions:
    """What to explain."""

    key: tyro.conf.Positional[Annotated[str, metavar("[KEY]", "the sections of a recipe")]] = ""
    """Dotted key; the kind of a variant may be left out, as in model.item.gate."""


@section
class SchemaOptions:
    """No options."""


def recipe(argv: Sequence[str]) -> None:
    """Prints an explanation or a recipe. Raises ConfigError for an unknown key or a recipe that cannot be used."""
    command, words = RECIPE.choose(argv)
    if command == "explain":
        print(explain(parse(ExplainOptions, words, "sidrec recipe explain", EXPLAIN).key))
    else:
        print(as_yaml(recipe_and_options(RecipeOptions, words, "sidrec recipe show", SHOW)[0]), end="")


def schema(argv: Sequence[str]) -> None:
    """Prints the schema."""
    parse(SchemaOptions, argv, "sidrec schema", SCHEMA)
    print(json.dumps(json_schema(), indent=1))
