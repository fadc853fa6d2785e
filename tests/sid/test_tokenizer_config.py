"""The tokenizer section: learners and vector columns that do not go together are refused before anything is read."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from sidrec.config.learners import TokenizerConfig


def read(**section: Any) -> TokenizerConfig:
    return TypeAdapter(TokenizerConfig).validate_python(section)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (
            {"vectors": ["text"], "learner": {"kind": "adc_sid"}},
            r"expected vectors of adc_sid to be behavior and at least one content, got \['text'\]",
        ),
        ({"vectors": ["behavior"], "learner": {"kind": "adc_sid"}}, r"at least one content, got \['behavior'\]"),
        (
            {"vectors": ["text", "behavior"], "learner": {"kind": "mm_rqvae", "levels": 5}},
            "expected levels of mm_rqvae as a multiple of 2 vectors, got 5",
        ),
        (
            {"learner": {"kind": "random"}, "resolve_collisions": True},
            "expected resolve_collisions with a learner whose codes are nearest ones, got random",
        ),
    ],
)
def test_refused(section: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        read(**section)


def test_accepted() -> None:
    assert read(vectors=["behavior", "text"], learner={"kind": "adc_sid"}).learner.kind == "adc_sid"
    assert read(vectors=["text", "behavior"], learner={"kind": "mm_rqvae", "levels": 6}).learner.kind == "mm_rqvae"
    assert read(resolve_collisions=True).resolve_collisions
    assert not read().resolve_collisions
