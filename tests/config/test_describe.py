"""The recipe's JSON schema and its explanations: every key is described, and shipped recipes satisfy the schema."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sidrec import cli
from sidrec.config import ConfigError, load_file, load_mapping
from sidrec.config.describe import explain, json_schema, keys_at

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*(ROOT / "launch" / "recipes").glob("*.yaml"), *(ROOT / "benchmarks" / "recipes").glob("*.yaml")])
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def _properties(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property anywhere in the schema."""
    if isinstance(node, dict):
        for name, inner in node.items():
            if name == "properties":
                yield from ((f"{path}.{key}", value) for key, value in inner.items())
            yield from _properties(inner, f"{path}.{name}")
    elif isinstance(node, list):
        for place, inner in enumerate(node):
            yield from _properties(inner, f"{path}.{place}")


def test_every_key_has_a_description() -> None:
    properties = dict(_properties(json_schema()))
    assert len(properties) > 350
    assert [path for path, node in properties.items() if not node.get("description")] == []


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_shipped_recipes_satisfy_the_schema(path: Path) -> None:
    VALIDATOR.validate(load_mapping(path, "recipe"))
    resolved = json.loads(json.dumps(asdict(load_file(path)), default=str))
    VALIDATOR.validate(resolved)


@pytest.mark.parametrize(
    "change",
    [
        {"sede": 1},
        {"seed": "one"},
        {"data": {"path": "d"}},
        {"model": {"item": {"kind": "sidcoord"}}},
        {"model": {"item": {"granularities": ["s1"]}}},
        {"model": {"item": {"kind": "hid", "gate": {"kind": "sum"}}}},
    ],
)
def test_the_schema_refuses(change: dict[str, Any]) -> None:
    recipe = {"name": "a", "data": {"path": "d", "catalog": "c"}}
    assert VALIDATOR.is_valid(recipe)
    assert not VALIDATOR.is_valid(recipe | change)


def test_a_variant_is_explained_by_its_kinds() -> None:
    told = explain("model.item")
    assert told.startswith("model.item: kind: ")
    assert "sid_coord    HID and SID, coordinated" in told
    assert "model.item.content:\n" in told
    assert '  history: list of hid | sid, default ["hid"]' in told


def test_the_kind_may_be_left_out() -> None:
    assert explain("model.item.gate.start") == explain("model.item.sid_coord.gate.stats.start")
    assert explain("model.item.gate.start").startswith(
        "model.item.sid_coord.gate.stats.start: balanced | hid_only, default balanced\n  balanced: as published."
    )


def test_a_preset_is_explained_by_what_it_fills_in() -> None:
    told = " ".join(explain("model.item.preset").split())
    assert "published fills in {views: [mixed], history: [hid], hid_dropout: 0.0, gate: {kind: stats}}." in told
    assert "recommended fills in {views: [hid, sid], history: [hid, sid], hid_dropout: 0.1}." in told
    assert "paper fills in {training: {revive_every: 0}}." in explain("tokenizer.learner.rqvae.preset")


def test_a_section_is_explained_by_its_keys() -> None:
    told = explain()
    assert "  name: text, required\n      Names the run directory." in told
    assert "  batch_size: integer > 0, default 4096" in explain("data")


def test_defaults_are_those_of_the_place() -> None:
    assert explain("tokenizer.learner.rqvae.training.batch_size").startswith(
        "tokenizer.learner.rqvae.training.batch_size: integer > 0, default 1024"
    )
    assert "integer > 0, default 2048" in explain("tokenizer.learner.adc_sid.training.batch_size")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("modle", "expected one of the keys name, seed, .* under the recipe, got 'modle'; did you mean model\\?"),
        ("data.btch_size", "under data, got 'btch_size'; did you mean batch_size\\?"),
        ("granularities", "granularities is a key at model.item.gate_sid.granularities, "),
        ("data.path.x", "expected no key under data.path, which holds a single value, got 'x'"),
    ],
)
def test_a_wrong_key_is_answered_with_those_that_exist(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explain(key)


def test_keys_at_a_place_of_a_mistake() -> None:
    assert keys_at(["model", "item"]) == ["content", "gate_sid", "hid", "hid_and_sid", "sid", "sid_coord"]
    assert keys_at(["tokenizer", "learner", "rqvae", "losses", 0, "diversity"]) == [
        "kind",
        "weight",
        "schedule",
        "groups",
    ]
    assert keys_at(["nowhere"]) == []


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
    assert cli.main(["recipe", "explain", "model.item.gate"]) == 0
    assert capsys.readouterr().out == explain("model.item.gate") + "\n"
    (tmp_path / "recipe.yaml").write_text("name: a\ndata: {path: d, catalog: c}\n")
    assert cli.main(["recipe", "show", str(tmp_path / "recipe.yaml"), "--seed", "3"]) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    assert load_file(tmp_path / "shown.yaml").seed == 3
    assert cli.main(["recipe", "explian"]) == 2
    assert "did you mean explain?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["schema"], ["recipe", "explain"]])
def test_they_start_without_torch(words: list[str]) -> None:
    code = f"import sys; from sidrec import cli; cli.main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
