"""Writes recipe_reference.md, every key of a recipe, from the JSON schema that `sidrec schema` prints.

A section of the recipe is named by the first place where it may stand, as in `sidrec recipe explain model.item.gate`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sidrec.config.describe import json_schema

Node = dict[str, Any]  # a JSON schema, or a part of one

PAGE = Path(__file__).with_name("recipe_reference.md")
HEAD = """# Recipe reference

Every key of a recipe. `sidrec recipe explain KEY` prints the same in a terminal, `sidrec recipe show RECIPE` prints a
recipe with every default filled in, and `sidrec schema` prints the JSON schema, with which editors complete and check
recipes: put `# yaml-language-server: $schema=recipe.schema.json` in a recipe's first line.

A default that is a section shows only what differs from the section's own defaults.
"""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def write_recipe_reference() -> None:
    """Replaces the page: a table for the recipe, then one for each section."""
    schema = json_schema()
    names = _titles(schema)
    parts = [HEAD, "## The recipe", "", *_table(schema, names)]
    for name, title in names.items():
        section = _section(name)
        level = "##" if "." not in title else "###"
        kind = section["properties"].get("kind", {}).get("const")
        heading = f"{level} {title}: {{kind: {kind}}}" if kind else f"{level} {title}"
        parts += ["", f"({_anchor(name)})=", heading, "", section.get("description", ""), ""]
        parts += _table(section, names)
    PAGE.write_text("\n".join(parts) + "\n")


def _titles(schema: Node) -> dict[str, str]:
    """Section -> dotted key of its first place; sections of one top-level key together, outer ones first."""
    titles: dict[str, str] = {}
    for key, node in schema["properties"].items():
        queue = [(key, name) for name in _names(node)]
        for path, name in queue:
            if name not in titles:
                titles[name] = path
                keys = _section(name)["properties"].items()
                queue += [(f"{path}.{inner}", found) for inner, value in keys for found in _names(value)]
    return titles


def _names(node: Any) -> Iterator[str]:
    """Names of the sections that a key may hold."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2]
        for key, part in node.items():
            if key not in ("default", "$defs", "discriminator"):
                yield from _names(part)
    elif isinstance(node, list):
        for part in node:
            yield from _names(part)


def _section(name: str) -> Node:
    return json_schema()["$defs"][name]


def _anchor(name: str) -> str:
    return f"section-{name.replace('_', '-').lower()}"


def _table(section: Node, names: dict[str, str]) -> list[str]:
    rows = [
        f"| `{key}` | {_accepts(value, names)} | {_default(value)} | {_cell(value.get('description', ''))} |"
        for key, value in section["properties"].items()
        if "const" not in value
    ]
    return ["| key | accepts | default | meaning |", "|---|---|---|---|", *rows] if rows else ["No keys."]


def _accepts(value: Node, names: dict[str, str]) -> str:
    if "$ref" in value:
        name = next(_names(value))
        return f"[{names[name]}](#{_anchor(name)})"
    if "discriminator" in value:
        kinds = value["discriminator"]["mapping"].items()
        return "kind: " + ", ".join(f"[{kind}](#{_anchor(ref.rpartition('/')[2])})" for kind, ref in kinds)
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_accepts(choice, names) for choice in value["anyOf"]))
    if value.get("type") == "array":
        return f"list of {_accepts(value['items'], names)}" if "items" in value else "list"
    limits = [f"{sign} {value[name]}" for name, sign in BOUNDS.items() if name in value]
    return " ".join([str(value.get("type", "")), ", ".join(limits)]).strip()


def _default(value: Node) -> str:
    if "default" not in value:
        return "required"
    differing = _differing(value["default"], value)
    own = differing == {} and "anyOf" not in value  # a section with its own defaults, which its table shows
    return "" if own else f"`{_flow(differing)}`".replace("|", "\\|")


def _differing(default: Any, node: Node) -> Any:
    """Of a section its kind and the keys that differ from the section's own defaults; other values as they are."""
    if isinstance(default, list):
        return [_differing(entry, node) for entry in default]
    if not isinstance(default, dict):
        return default
    candidates = [_section(name) for name in _names(node)]
    for section in candidates:
        keys = section["properties"]
        const = keys.get("kind", {}).get("const")
        if const is None or const == default["kind"]:
            inner = {key: _differing(entry, keys[key]) for key, entry in default.items()}
            own = {key: _differing(keys[key].get("default", {}), keys[key]) for key in inner}
            return {key: entry for key, entry in inner.items() if own[key] != entry or (const and key == "kind")}
    return default


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return value if isinstance(value, str) and value else json.dumps(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
