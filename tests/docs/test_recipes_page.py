"""The lines of YAML in docs/recipes.md are what the recipe understands, and every kind is named there."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from sidrec.config.item import Item
from sidrec.config.item_parts import Alignment, Fusion, Gate
from sidrec.config.model import ModelConfig
from tests.model.test_ranker import batch_for, ranker_for

PAGE = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
ITEM: TypeAdapter[Item] = TypeAdapter(Item)
RIVALS = {
    name: yaml.safe_load(line)
    for name, line in re.findall(r"^\| ([^|`]+?) \| `(item: \{.*?\})`[^|]*\|", PAGE, re.MULTILINE)
}
KINDS = [yaml.safe_load(line) for line in re.findall(r"^\| `item: (\{kind: \w+.*?\})`[^|]*\|", PAGE, re.MULTILINE)]
ITEM_KINDS = set(TypeAdapter(Item).json_schema()["discriminator"]["mapping"])


def test_every_item_kind_is_a_line() -> None:
    named = {entry["item"]["kind"] for entry in RIVALS.values()}
    named |= {entry["kind"] for entry in KINDS if entry["kind"] in ITEM_KINDS}
    assert named == ITEM_KINDS
    assert len(RIVALS) == 11


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_is_a_model(name: str) -> None:
    TypeAdapter(ModelConfig).validate_python(RIVALS[name])
    ranker = ranker_for(**RIVALS[name])
    assert ranker(batch_for(ranker))[0].isfinite()


@pytest.mark.parametrize("choice", [Alignment, Fusion, Gate])
def test_every_part_is_named(choice: Any) -> None:
    kinds = [part.kind for part in get_args(get_args(choice)[0])]
    unnamed = [kind for kind in kinds if not re.search(rf"\b{kind}\b", PAGE, re.IGNORECASE)]
    assert unnamed == []


REFUSED = {
    "weights of subwords": (
        {"kind": "sid", "tokens": {"kind": "spm", "vocabulary": 9}, "token_weights": "append"},
        "expected token_weights: off with tokens of kind spm, got append",
    ),
    "hashed subwords": (
        {"kind": "sid", "tokens": {"kind": "spm", "vocabulary": 9}, "index": {"kind": "modulo", "rows": 9}},
        "expected index: {kind: exact} with tokens of kind spm, got modulo",
    ),
    "no vectors": ({"kind": "content", "vectors": []}, "expected at least one vector column, got none"),
    "vectors twice": ({"kind": "content", "vectors": ["text", "text"]}, "expected every name once, got 'text' twice"),
    "histories twice": (
        {"kind": "hid_and_sid", "history": ["sid", "sid"]},
        "expected every name once, got 'sid' twice",
    ),
    "one row": ({"kind": "hid", "hid_index": {"kind": "modulo", "rows": 1}}, "greater than or equal to 2"),
    "managed SIDs": (
        {"kind": "sid", "index": {"kind": "managed_collision", "rows": 9}},
        "does not match any of the expected tags: 'exact', 'modulo'",
    ),
    "no eviction": (
        {"kind": "hid", "hid_index": {"kind": "managed_collision", "rows": 9, "eviction_interval": 0}},
        "greater than 0",
    ),
    "no vocabulary": ({"kind": "sid", "tokens": {"kind": "spm"}}, "vocabulary"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_items_that_cannot_be_are_refused(name: str) -> None:
    item, sentence = REFUSED[name]
    with pytest.raises(ValidationError) as refused:
        ITEM.validate_python(item)
    assert sentence in str(refused.value)
