"""Every path of every command and recipe takes a URI or refuses it by name. They are drawn from the code: a new one
cannot escape."""

import ast
import importlib
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import tyro

from sidrec.cli.dispatch import main
from sidrec.command_line import parse
from sidrec.config import load
from sidrec.config.describe import json_schema
from sidrec.errors import ConfigError
from sidrec.io.places import StorePath
from sidrec.study.definition import load_study

ROOT = Path(__file__).parents[1]
URI = "s3://bucket/folder"
TAKE_URIS = {
    *(f"EvaluateOptions.{name}" for name in ("data", "catalog")),
    *(f"ExportOptions.{name}" for name in ("paths", "data", "catalog")),
    *(f"ScoreOptions.{name}" for name in ("bundle", "rows", "out")),
    "ServeOptions.bundle",
    *(f"SkewOptions.{name}" for name in ("bundle", "prepared")),
    *(f"ShadowOptions.{name}" for name in ("bundle", "other", "rows")),
}
"""Arguments that take a URI, as CLASS.field."""
KEYS_THAT_TAKE_URIS = {"data.path", "data.catalog"}


def _kinds() -> dict[str, type]:
    """The classes of arguments: what modules of commands pass to the functions that parse."""
    found = {}
    for path in [*(ROOT / "sidrec/cli").glob("*.py"), *(ROOT / "data_prep").glob("*.py")]:
        module = importlib.import_module(f"{path.parent.relative_to(ROOT).as_posix().replace('/', '.')}.{path.stem}")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Name):
                kind = getattr(module, node.args[0].id, None)
                called = ast.unparse(node.func).rpartition(".")[2]
                if called in ("parse", "recipe_and_options", "run") and isinstance(kind, type) and is_dataclass(kind):
                    found[kind.__name__] = kind
    return found


def _types(hint: Any) -> set[Any]:
    """The types in a hint: those of unions, tuples and annotations."""
    if get_origin(hint) in (Union, UnionType, tuple) or hasattr(hint, "__metadata__"):
        inside = [hint.__origin__] if hasattr(hint, "__metadata__") else get_args(hint)
        return set().union(*(_types(each) for each in inside))
    return {hint}


KINDS = _kinds()
HINTS = {name: get_type_hints(kind, include_extras=True) for name, kind in KINDS.items()}
PATHS = [
    (name, field)
    for name, hints in HINTS.items()
    for field, hint in hints.items()
    if _types(hint) & {Path, str} and _types(hint) <= {Path, str, StorePath, NoneType, Ellipsis}
]


def _words(kind: type, chosen: str) -> list[str]:
    """Arguments with a URI for one of them."""
    positional, options = [], []
    hints = HINTS[kind.__name__]
    for field in fields(kind):
        needed = field.default is MISSING and field.default_factory is MISSING
        hint = hints[field.name]
        literal = next((get_args(each)[0] for each in _types(hint) if get_origin(each) is Literal), "1")
        value = URI if field.name == chosen else literal
        if tyro.conf._markers.Positional in getattr(hint, "__metadata__", ()):
            positional.append(value)
        elif needed or field.name == chosen:
            options += [_shown_name(kind, field.name), value]
    return [*positional, *options]


def _shown_name(kind: type, field: str) -> str:
    extras = getattr(HINTS[kind.__name__][field], "__metadata__", ())
    named = [extra.metavar for extra in extras if hasattr(extra, "aliases") and extra.metavar]
    if tyro.conf._markers.Positional not in extras:
        names = [extra.name for extra in extras if getattr(extra, "name", None)]
        return f"--{(names or [field])[0].replace('_', '-')}"
    return named[0] if named else field.upper()


def test_arguments_are_found() -> None:
    assert {"ScoreOptions", "RecipeOptions", "StudyOptions", "DayForwardOptions", "BenchOptions"} <= set(KINDS)
    assert len(KINDS) > 25
    assert len(PATHS) > 60
    drawn = {f"{name}.{field}" for name, field in PATHS if StorePath in _types(HINTS[name][field])}
    assert drawn == TAKE_URIS


@pytest.mark.parametrize(("name", "field"), PATHS)
def test_an_argument_takes_a_uri_or_refuses_it(name: str, field: str) -> None:
    kind = KINDS[name]
    if f"{name}.{field}" in TAKE_URIS:
        parsed: Any = parse(kind, _words(kind, field), "sidrec x", "", others=True)[0]
        found = getattr(parsed, field)
        assert isinstance(found[0] if isinstance(found, tuple) else found, StorePath)
        return
    with pytest.raises(ConfigError, match=f"takes a local path, got {URI}; copy it first") as error:
        parse(kind, _words(kind, field), "sidrec x", "", others=True)
    assert f" {_shown_name(kind, field)}: takes" in str(error.value)


def _path_keys(node: dict[str, Any], path: str = "") -> Iterator[str]:
    """Dotted keys of type path in a JSON schema."""
    node = json_schema()["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    if node.get("format") == "path":
        yield path
    for option in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from _path_keys(option, path)
    for key, inner in node.get("properties", {}).items():
        yield from _path_keys(inner, f"{path}.{key}".lstrip("."))


KEYS = sorted({key for key in _path_keys(json_schema()) if key})


def _recipe(tmp_path: Path, **lines: str) -> Path:
    sections = {"name": "x", "data": "{path: a, catalog: b}", **lines}
    (tmp_path / "recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in sections.items()))
    return tmp_path / "recipe.yaml"


def test_keys_are_found() -> None:
    assert {"data.path", "data.catalog", "train.runs", "start.checkpoint", "parallel.plan"} <= set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_takes_a_uri_or_refuses_it(key: str, tmp_path: Path) -> None:
    section, _, name = key.partition(".")
    values = {"path": "a", "catalog": "b"} if section == "data" else {"checkpoint": "c"} if section == "start" else {}
    values[name] = URI
    inside = ", ".join(f"{each}: {value!r}" for each, value in values.items())
    recipe = _recipe(tmp_path, **{section: "{" + inside + "}"})
    if key in KEYS_THAT_TAKE_URIS:
        assert str(getattr(getattr(load([str(recipe)]), section), name)) == URI
        return
    with pytest.raises(ConfigError, match=f"  {key}: takes a local path, got {URI}; copy it first"):
        load([str(recipe)])
    with pytest.raises(ConfigError, match=f"  {key}: takes a local path, got {URI}"):
        load([str(_recipe(tmp_path)), *([] if section != "start" else ["--start.checkpoint", "c"]), f"--{key}", URI])


def test_the_docs_name_what_takes_a_uri() -> None:
    page = (ROOT / "docs/stores.md").read_text()
    for key in KEYS_THAT_TAKE_URIS:
        assert f"`{key}`" in page
    for argument in TAKE_URIS:
        kind, _, field = argument.partition(".")
        shown = _shown_name(KINDS[kind], field)
        row = next(line for line in page.splitlines() if line.startswith(f"| `{kind.removesuffix('Options').lower()}`"))
        assert shown.rpartition(" ")[2] in row.split("|")[2]


def test_keys_of_text_that_name_files_refuse_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"start.tables.hid: takes a local path, got gs://b/t.npy:x"):
        load([str(_recipe(tmp_path, start="{tables: {hid: 'gs://b/t.npy:x'}}"))])


@pytest.mark.parametrize("key", ["datasets: {a: 's3://b/r.yaml'}", "work: 's3://b/w'", "results: 's3://b/r'"])
def test_a_study_refuses(key: str, tmp_path: Path) -> None:
    lines = {"datasets": "datasets: {a: r.yaml}", "variants": "variants: {v: {}}", key.partition(":")[0]: key}
    (tmp_path / "s.yaml").write_text("\n".join(lines.values()))
    with pytest.raises(ConfigError, match=r"takes a local path, got s3://b/"):
        load_study(tmp_path / "s.yaml")


def test_credentials_are_refused_and_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = "s3://name:secret-word@bucket/x"
    recipe = _recipe(tmp_path, data=f"{{path: '{secret}', catalog: b}}")
    for words in (["score", secret, "in", "out"], ["recipe", "show", str(recipe)], ["score", f"--threads={secret}"]):
        assert main(words) == 2
        message = capsys.readouterr().err
        assert "***@bucket" in message
        assert "secret-word" not in message


def test_no_folder_called_by_a_scheme_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prep", "synthetic", "s3://bucket/world"]) == 2
    assert "OUT: takes a local path, got s3://bucket/world; copy it first" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
