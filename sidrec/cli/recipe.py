"""`sidrec recipe explain | show`: what keys mean, and a recipe with every default filled in."""

from collections.abc import Sequence

from sidrec.config import ConfigError, load
from sidrec.config.describe import explain
from sidrec.config.load import as_yaml
from sidrec.text import did_you_mean

HELP = """usage: sidrec recipe COMMAND ...

  explain [KEY]           what a key means, what it accepts, its default; the keys of a section, the kinds of a variant
  show RECIPE [options]   the recipe as YAML with every default filled in; options replace values, as for sidrec train

examples: sidrec recipe explain model.item
          sidrec recipe explain model.item.sid_coord.gate
          sidrec recipe show recipe.yaml --train.epochs 2

sidrec schema prints the same as a JSON schema, for editors."""

COMMANDS = ("explain", "show")


def main(argv: Sequence[str]) -> None:
    """Prints an explanation or a recipe. Raises ConfigError for an unknown key or a recipe that cannot be used."""
    match list(argv):
        case [] | ["-h" | "--help", *_] | ["explain", *_, "-h" | "--help"]:
            print(HELP)
        case ["explain"]:
            print(explain())
        case ["explain", key]:
            print(explain(key))
        case ["explain", *keys]:
            raise ConfigError(f"sidrec recipe explain: expected one key, got {' '.join(keys)}")
        case ["show", *words]:
            print(as_yaml(load(words, "sidrec recipe show", "Prints a recipe with every default filled in.")), end="")
        case [other, *_]:
            known = f"expected one of the commands {', '.join(COMMANDS)}, got {other!r}"
            raise ConfigError(f"sidrec recipe: {known}{did_you_mean(other, COMMANDS)}")
