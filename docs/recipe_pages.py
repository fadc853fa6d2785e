"""Writes recipe_reference.md, every key of a recipe, from the JSON schema that `sidrec schema` prints."""

from pathlib import Path
from typing import Any

from sidrec.config.describe import json_schema

PAGE = Path(__file__).with_name("recipe_reference.md")
HEAD = """# Recipe reference

Every key of a recipe. `sidrec recipe explain KEY` prints the same in a terminal, `sidrec recipe show RECIPE` prints a
recipe with every default filled in, and `sidrec schema` prints the JSON schema, with which editors complete and check
recipes: put `# yaml-language-server: $schema=recipe.schema.json` in a recipe's first line.
"""


def write_recipe_reference() -> None:
    """Replaces the page: a table for the recipe, then one for each section."""
    schema = json_schema()
    parts = [HEAD, _table("recipe", schema)]
    parts += [_table(_title(name, section), section) for name, section in schema["$defs"].items()]
    PAGE.write_text("\n".join(parts))


def _title(name: str, section: dict[str, Any]) -> str:
    kind = section["properties"].get("kind", {}).get("const")
    name = name.rpartition("__")[2]
    return f"{name} (kind: {kind})" if kind else name


def _table(title: str, section: dict[str, Any]) -> str:
    rows = [
        f"| `{key}` | {_accepts(value)} | {_default(value)} | {_cell(value.get('description', ''))} |"
        for key, value in section["properties"].items()
        if key != "kind"
    ]
    head = ["| key | accepts | default | |", "|---|---|---|---|"] if rows else []
    return "\n".join([f"## {title}", "", section.get("description", ""), "", *head, *rows, ""])


def _accepts(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2].rpartition("__")[2]
        return name
    if "discriminator" in value:
        return "kind: " + ", ".join(f"`{kind}`" for kind in value["discriminator"]["mapping"])
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_accepts(choice) for choice in value["anyOf"]))
    if value.get("type") == "array":
        return f"list of {_accepts(value['items'])}" if "items" in value else "list"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {value[name]}" for name, sign in bounds.items() if name in value]
    return " ".join([str(value.get("type", "")), ", ".join(limits)]).strip()


def _default(value: dict[str, Any]) -> str:
    if "default" not in value:
        return "required"
    default = value["default"]
    if isinstance(default, dict):
        return f"`{default['kind']}`" if "kind" in default else "its own"
    return f"`{default}`".replace("|", "\\|")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
