"""Descriptions of the recipe: its JSON schema, and the same as text for a terminal.

The docstring under a field is the one source of its description: tyro shows it in `--help`, `json_schema` puts it into
the schema, and `explain` prints what the schema says.
"""

import ast
import inspect
import json
import math
import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from sidrec.config.recipe import RECIPE
from sidrec.errors import ConfigError
from sidrec.text import did_you_mean

Node = dict[str, Any]  # a JSON schema, or a part of one

WIDTH = 100  # columns of explained text
MOST_PLACES = 5  # places named for a key that stands elsewhere in the recipe


@cache
def json_schema() -> Node:
    """The JSON schema of a recipe file, with a description for every key."""
    schema = RECIPE.json_schema(schema_generator=_DescribedSchema)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": "sidrec recipe"}


def explain(key: str = "") -> str:
    """What a key means, what it accepts and its default; of a section its keys, of a variant its kinds.

    key: dotted, as in `model.item.sid_coord.gate`; the kind may be left out where a key follows. "" is the recipe.
    Raises ConfigError for a key that does not exist, with those that do.
    """
    path, node = _find(key)
    title = ".".join(path) or "recipe"
    lines = [f"{title}: {_type_text(node)}{_default_text(node)}"]
    lines += _indented(node.get("description") or _core(node).get("description", ""), 2)
    kinds, keys = _kinds(node), _key_lines(node)
    if kinds:
        lines += ["", "Kinds:", *_names_with_text(kinds)]
        for kind, section in kinds.items():
            lines += ["", f"{title}.{kind}:", *(_key_lines(section) or ["  no keys of its own"])]
    elif keys:
        lines += ["", "Keys:", *keys]
    return "\n".join(lines)


def keys_at(steps: Iterable[str | int]) -> list[str]:
    """Keys of the section at pydantic's `loc`, or kinds if a variant is selected there; [] if there are none."""
    node = json_schema()
    for step in steps:
        if isinstance(step, int):
            continue
        known = _kinds(node) or _keys(node)
        if step not in known:
            return []
        node = known[step]
    return list(_kinds(node) or _keys(node))


# The schema: pydantic's, and in it the fields' docstrings.


class _DescribedSchema(GenerateJsonSchema):
    """Adds to every section the descriptions of its keys, and requires `kind` where it selects a variant."""

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        described = super().dataclass_schema(schema)
        texts = field_descriptions(schema["cls"])
        summary = inspect.cleandoc(schema["cls"].__doc__ or "")
        described["description"] = _one_line(summary)
        for name, node in described.get("properties", {}).items():
            if name == "kind" and "const" in node:
                node["description"] = f"Selects this variant. {_first_sentence(summary)}"
                described["required"] = ["kind", *described.get("required", [])]
            elif name in texts:
                node["description"] = texts[name] + (_preset_text(schema["cls"]) if name == "preset" else "")
        return described


def _preset_text(section: Any) -> str:
    """What each preset of a section fills in, as YAML."""
    filled = {
        name: yaml.safe_dump(dict(values), default_flow_style=True, width=math.inf, sort_keys=False).strip()
        for name, values in section.presets.items()
    }
    return "".join(f" {name} fills in {values}." for name, values in filled.items())


def field_descriptions(section: type) -> dict[str, str]:
    """Field -> its docstring on one line, those of the parents included."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if cls.__module__.startswith("sidrec."):
            found |= _docstrings(cls.__module__).get(cls.__name__, {})
    return found


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """Class -> field -> the string that follows the field, of a module's source."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: dict(_field_texts(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _field_texts(cls: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, text in zip(cls.body, cls.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                yield name, _one_line(words)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _first_sentence(text: str) -> str:
    """The first paragraph up to a full stop that ends a sentence."""
    paragraph = _one_line(text.split("\n\n")[0])
    for place, sign in enumerate(paragraph):
        if sign == "." and paragraph[place + 1 : place + 2] in ("", " ") and not paragraph[:place].endswith("e.g"):
            return paragraph[: place + 1]
    return paragraph


# Ways through the schema: a node is followed to the section, or the kinds of section, that it holds.


def _core(node: Node) -> Node:
    """The section or variants inside a reference, an optional value or a list; otherwise the node itself."""
    while True:
        if "$ref" in node:
            node = json_schema()["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif len(some := [part for part in node.get("anyOf", ()) if part.get("type") != "null"]) == 1:
            node = some[0]
        elif isinstance(node.get("items"), dict):
            node = node["items"]
        else:
            return node


def _kinds(node: Node) -> dict[str, Node]:
    """Kind -> its section; empty where there is no choice."""
    mapping = _core(node).get("discriminator", {}).get("mapping", {})
    kinds = {kind: _core({"$ref": ref}) for kind, ref in mapping.items()}
    default = node.get("default")
    if kinds and isinstance(default, dict):
        kinds[default["kind"]] = kinds[default["kind"]] | {"default": default}
    return kinds


def _keys(node: Node) -> dict[str, Node]:
    """Key -> its schema; empty for anything but a section. A section's default overrides the defaults of its keys."""
    keys: dict[str, Node] = dict(_core(node).get("properties", {}))
    default = node.get("default")
    if isinstance(default, dict):
        keys = {key: inner | {"default": default[key]} if key in default else inner for key, inner in keys.items()}
    return keys


def _find(key: str) -> tuple[list[str], Node]:
    """The full path of a key and its schema. Raises ConfigError."""
    path: list[str] = []
    node = json_schema()
    for step in key.split(".") if key else ():
        kinds, keys = _kinds(node), _keys(node)
        if kinds and step not in kinds:
            holders = [kind for kind, section in kinds.items() if step in _keys(section)]
            if not holders:
                raise _unknown_key(step, path, [*kinds, *(key for kind in kinds.values() for key in _keys(kind))])
            default = node.get("default")
            kind = default["kind"] if isinstance(default, dict) and default["kind"] in holders else holders[0]
            path.append(kind)
            keys = _keys(kinds[kind])
        elif not kinds and step not in keys:
            raise _unknown_key(step, path, list(keys))
        node = keys[step] if step in keys else kinds[step]
        path.append(step)
    return path, node


def _unknown_key(key: str, path: list[str], known: list[str]) -> ConfigError:
    where = ".".join(path) or "the recipe"
    if not known:
        return ConfigError(f"expected no key under {where}, which holds a single value, got {key!r}")
    names = list(dict.fromkeys(known))
    elsewhere = [place for place in _places(json_schema(), "") if place.rsplit(".", 1)[-1] == key][:MOST_PLACES]
    hint = f"; {key} is a key at {', '.join(elsewhere)}" if elsewhere else did_you_mean(key, names)
    return ConfigError(f"expected one of the keys {', '.join(names)} under {where}, got {key!r}{hint}")


def _places(node: Node, path: str) -> Iterator[str]:
    """Every dotted key below a node."""
    for name, inner in (_kinds(node) or _keys(node)).items():
        place = f"{path}.{name}" if path else name
        yield place
        yield from _places(inner, place)


# The schema as text.


def _key_lines(section: Node) -> list[str]:
    """Two lines or more per key: name, type and default; then the description."""
    lines = []
    for name, node in _keys(section).items():
        if name == "kind" and "const" in node:
            continue
        required = name in _core(section).get("required", ())
        lines.append(f"  {name}: {_type_text(node)}{', required' if required else _default_text(node)}")
        lines += _indented(node.get("description", ""), 6)
    return lines


def _names_with_text(kinds: dict[str, Node]) -> list[str]:
    width = max(map(len, kinds))
    return [f"  {kind:<{width}}  {_first_sentence(section['description'])}" for kind, section in kinds.items()]


def _indented(text: str, by: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=" " * by, subsequent_indent=" " * by)


def _type_text(node: Node) -> str:
    """The values that a schema accepts, in words."""
    if _kinds(node):
        text = ", ".join(_kinds(node))
        return f"list of kinds: {text}" if _is_list(node) else f"kind: {text}"
    if _keys(node):
        return "section"
    if "anyOf" in node:
        return " or ".join(map(_type_text, node["anyOf"]))
    if "enum" in node or "const" in node:
        return " | ".join(map(str, node.get("enum", [node.get("const")])))
    if node.get("type") == "array":
        return _list_text(node)
    if "additionalProperties" in node:
        return f"mapping of name to {_type_text(node['additionalProperties'])}"
    name = {"integer": "integer", "number": "number", "string": "text", "boolean": "true | false", "null": "null"}
    text = "path" if node.get("format") == "path" else name.get(str(node.get("type")), "any value")
    bounds = [f"{sign} {node[bound]:g}" for bound, sign in _BOUNDS.items() if bound in node]
    return f"{text} {' and '.join(bounds)}".rstrip()


_BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "multipleOf": "multiple of",
}


def _is_list(node: Node) -> bool:
    return node.get("type") == "array" or any(part.get("type") == "array" for part in node.get("anyOf", ()))


def _list_text(node: Node) -> str:
    if "prefixItems" in node:
        return f"[{', '.join(map(_type_text, node['prefixItems']))}]"
    return f"list of {_type_text(node['items'])}"


def _default_text(node: Node) -> str:
    """Text such as ", default X"; a section's default is its kind, if it has one."""
    if "default" not in node:
        return ""
    default = node["default"]
    if isinstance(default, dict) and _keys(node):
        return ""
    if isinstance(default, dict) and "kind" in default:
        return f", default {default['kind']}"
    if isinstance(default, list) and default and isinstance(default[0], dict):
        return f", default {', '.join(entry['kind'] for entry in default)}"
    return f", default {default if isinstance(default, str) else json.dumps(default)}"
