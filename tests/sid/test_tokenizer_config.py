"""The tokenizer section: learners and vector columns that do not go together are refused before anything is read."""

from dataclasses import asdict, fields
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from sidrec.config.learner_parts import Pairs
from sidrec.config.learners import GradientLearnerConfig, TokenizerConfig


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


PRESETS: list[tuple[str, str, dict[str, Any]]] = [
    ("rqvae", "paper", {"training.revive_every": 0}),
    ("letter", "released", {"training.revive_every": 0, "training.lr": 1e-3, "sinkhorn": 0.003}),
    *(
        (
            kind,
            "paper",
            {
                "training.optimizer": "adam",
                "training.lr": 3e-4,
                "training.weight_decay": 1e-5,
                "training.batch_size": 2 * 256,
                "training.revive_every": 0,
                "training.pairs": Pairs(directed=True, draw="pairs"),
            },
        )
        for kind in ("quasid", "adasid")
    ),
    (
        "mm_rqvae",
        "released",
        {
            "reconstruction": "mean",
            "commitment": 0.01,
            "mmd": "one_kernel",
            "commitment_gradient": "first_level",
            "sinkhorn": 0.003,
            "training.lr": 2e-4,
            "training.weight_decay": 1e-4,
            "training.batch_size": 1024,
            "training.revive_every": 0,
            "reconstruct_weight": 3.0,
            "align_weight": 0.01,
        },
    ),
    ("adc_sid", "paper", {"unit_latents": False, "training.revive_every": 0, "training.batch_size": 2048}),
]


def value_at(section: Any, key: str) -> Any:
    for name in key.split("."):
        section = getattr(section, name)
    return section


@pytest.mark.parametrize(("kind", "preset", "expected"), PRESETS, ids=[f"{kind}-{name}" for kind, name, _ in PRESETS])
def test_presets_fill_in_what_the_recipe_leaves_out(kind: str, preset: str, expected: dict[str, Any]) -> None:
    """The preset's values; the learner's defaults elsewhere; the recipe's own values above both."""
    vectors = ["text", "behavior"]
    filled = read(vectors=vectors, learner={"kind": kind, "preset": preset}).learner
    plain = read(vectors=vectors, learner={"kind": kind}).learner
    assert {key: value_at(filled, key) for key in expected} == expected
    preset_keys = set(type(filled).presets[preset])
    for field in fields(filled):
        if field.name not in {"preset", *preset_keys}:
            assert getattr(filled, field.name) == getattr(plain, field.name), field.name
    changed = {"kind": kind, "preset": preset, "codebook_size": 7, "training": {"epochs": 3, "revive_every": 2}}
    own = read(vectors=vectors, learner=changed).learner
    assert (own.codebook_size, own.training.epochs, own.training.revive_every) == (7, 3, 2)  # type: ignore[union-attr]
    rest = {key for key in expected if key != "training.revive_every"}
    assert {key: value_at(own, key) for key in rest} == {key: expected[key] for key in rest}
    saved = read(**asdict(TokenizerConfig(vectors=("text", "behavior"), learner=own)))
    assert saved.learner == own, "a saved section has every key, and is read as it is"


def test_a_training_given_in_part_keeps_the_learners_defaults() -> None:
    given: list[dict[str, Any]] = [{}, {"epochs": 3}, {"pairs": {}}]
    for training in given:
        found = read(vectors=["text", "behavior"], learner={"kind": "adc_sid", "training": training}).learner
        assert found.training.batch_size == 2048  # type: ignore[union-attr]


def test_every_preset_is_tested_and_learners_without_one_refuse_the_key() -> None:
    known = {(kind.kind, name) for kind in get_args(GradientLearnerConfig) for name in kind.presets}
    assert known == {(kind, name) for kind, name, _ in PRESETS}
    for kind, name in (("multi_vq", "paper"), ("das_lite", "paper"), ("quasid", "released"), ("opq", "paper")):
        with pytest.raises(ValidationError, match="preset"):
            read(learner={"kind": kind, "preset": name})
    with pytest.raises(ValidationError, match="preset"):
        read(learner={"kind": "quasid", "preset": ["paper"]})


def test_weights_of_columns_that_are_not_read_are_refused() -> None:
    learner = {"kind": "adc_sid", "reconstruction_weights": {"visual": 0.5}}
    with pytest.raises(ValidationError, match=r"reconstruction_weights of columns among .*, got 'visual'"):
        read(vectors=["text", "behavior"], learner=learner)
    assert read(vectors=["behavior", "visual"], learner=learner).learner.reconstruction_weights == {"visual": 0.5}  # type: ignore[union-attr]
