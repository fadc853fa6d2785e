"""`sidrec schema`: the JSON schema of recipes, for editors and other checkers."""

import argparse
import json
from collections.abc import Sequence

from sidrec.config.describe import json_schema

ABOUT = """Prints the JSON schema of recipes, with a description for every key.

example: sidrec schema > recipe.schema.json

Editors with yaml-language-server then complete and check a recipe whose first line is
  # yaml-language-server: $schema=recipe.schema.json"""


def main(argv: Sequence[str]) -> None:
    """Prints the schema."""
    parser = argparse.ArgumentParser(
        prog="sidrec schema", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    print(json.dumps(json_schema(), indent=1))
