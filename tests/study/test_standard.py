"""The standard study of a recipe: its variants, its search, and the command's options."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sidrec.cli import main as sidrec
from sidrec.config import ConfigError
from sidrec.sid.catalog import Catalog, write_catalog
from sidrec.study.runner import check_recipes
from sidrec.study.search import contenders_of
from sidrec.study.standard import OWN, study_of

RECIPE: dict[str, Any] = {
    "name": "world",
    "data": {"path": "my log", "catalog": "catalog"},
    "tokenizer": {"vectors": ["text"], "learner": {"kind": "residual_kmeans", "levels": 3, "codebook_size": 8}},
    "optimizer": {"tables": {"kind": "adagrad", "lr": 0.1}},
}
STANDARD = ["hid_only", "sid_only", "concatenation", "mean", "published", "recommended", "prefix_ngram", "content"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _recipe(**changes: Any) -> Path:
    recipe = {key: value for key, value in {**RECIPE, **changes}.items() if value is not None}
    Path("my recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Path("my recipe.yaml")


def _items(**changes: Any) -> dict[str, dict[str, Any]]:
    return {name: variant["model"]["item"] for name, variant in study_of(_recipe(**changes)).variants.items()}


def test_a_recipe_is_compared_with_the_standard_variants() -> None:
    study = study_of(_recipe())
    assert (study.name, list(study.datasets), list(study.variants)) == ("my_recipe", ["my_log"], STANDARD)
    assert study.references == ("hid_only", "sid_only")
    runs = check_recipes(study)  # the trainer would read every recipe
    assert {(run.number, run.fit) for run in runs if run.variant == "recommended"} == {(r, r) for r in range(10)}
    assert {run.fit for run in runs if run.variant in ("hid_only", "content")} == {None}


@pytest.mark.parametrize(
    ("item", "own"),
    [
        ({"kind": "hid"}, False),
        ({"kind": "sid"}, False),
        ({"kind": "sid", "granularities": ["s1"]}, True),
        ({"kind": "sid_coord", "preset": "recommended"}, False),
        ({"kind": "sid_coord"}, False),  # as published, without saying so
        ({"kind": "sid_coord", "gate": {"kind": "sum"}}, True),
        ({"kind": "gate_sid"}, True),
    ],
)
def test_the_recipes_own_item_is_a_variant_unless_it_is_a_standard_one(item: dict[str, Any], own: bool) -> None:
    items = _items(model={"item": item})
    assert list(items) == [*STANDARD, OWN] if own else list(items) == STANDARD
    assert items.get(OWN, item) == item


@pytest.mark.parametrize("levels", [1, 2, 4, 6])
def test_variants_use_all_levels(levels: int) -> None:
    tokenizer = {"vectors": ["text"], "learner": {"kind": "residual_kmeans", "levels": levels, "codebook_size": 8}}
    items = _items(tokenizer=tokenizer)
    single = [f"s{level}" for level in range(1, levels + 1)]
    assert items["concatenation"]["granularities"] == single
    for name in ("sid_only", "mean", "published", "recommended"):
        assert items[name]["granularities"][:levels] == single
        assert len(items[name]["granularities"]) == 2 * levels - 1
    assert items["prefix_ngram"]["granularities"][:2] == ["s1", "s12"][:levels]
    check_recipes(study_of(_recipe(tokenizer=tokenizer)))


def test_independent_levels_have_no_prefixes_and_no_pairs() -> None:
    items = _items(tokenizer={"vectors": ["text"], "learner": {"kind": "opq", "levels": 4}})
    assert "prefix_ngram" not in items
    assert items["sid_only"]["granularities"] == ["s1", "s2", "s3", "s4"]
    adc = {"vectors": ["text", "behavior"], "learner": {"kind": "adc_sid"}}
    levels = _items(tokenizer=adc)["recommended"]["granularities"]
    assert levels == [f"s{level}" for level in range(1, len(levels) + 1)]


def test_without_a_tokenizer_the_catalog_decides() -> None:
    Path("catalog").mkdir()
    write_catalog(Catalog(np.array([1, 2]), np.array([[0, 1], [1, 0]]), (2, 2)), Path("catalog"))
    study = study_of(_recipe(tokenizer=None))
    assert study.variants["recommended"]["model"]["item"]["granularities"] == ["s1", "s2", "s12"]
    assert "content" not in study.variants
    assert {run.fit for run in check_recipes(study)} == {None}


def test_granularities_beyond_the_levels_are_refused_before_any_fit() -> None:
    tokenizer = {"vectors": ["text"], "learner": {"kind": "residual_kmeans", "levels": 2, "codebook_size": 8}}
    path = _recipe(tokenizer=tokenizer, model={"item": {"kind": "sid", "granularities": ["s1", "s23"]}})
    with pytest.raises(ConfigError, match=r"my_log/own: .*granularities of the tokenizer's 2 levels, got s23"):
        check_recipes(study_of(path))


def test_the_search_is_the_same_for_every_variant_and_leaves_its_mark() -> None:
    path = _recipe()
    assert study_of(path).tuning is None
    study = study_of(path, tune=True)
    tuning = study.tuning
    assert tuning is not None
    budgets = {contender.variant: contender.budget for contender in contenders_of(study)}
    assert budgets == dict.fromkeys(STANDARD, tuning.trials)
    best = Path("elsewhere/my_recipe/best.yaml")
    best.parent.mkdir(parents=True)
    best.write_text("{}")
    assert study_of(path, Path("elsewhere")).tuning == tuning  # lest tuned runs be trained again without their values
    assert study_of(path).tuning is None


def test_mistakes_of_a_recipe_are_the_recipes() -> None:
    with pytest.raises(ConfigError, match=r"my recipe\.yaml.*\n.*batch_sise"):
        study_of(_recipe(data={**RECIPE["data"], "batch_sise": 3}))


def test_runs_that_would_end_late_do_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sh", "-c", "touch started"]
    study = {"datasets": {"world": "my recipe.yaml"}, "variants": {"hid": {}}, "command": command}
    _recipe(tokenizer=None)
    Path("small.yaml").write_text(yaml.safe_dump(study))
    assert sidrec(["study", "small.yaml", "--minutes", "1e-9"]) == 0
    assert not Path("started").exists()
    assert sidrec(["study", "small.yaml", "--runs", "1"]) == 1  # it trains, and leaves no metrics
    assert Path("started").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "small.yaml"], r"as in `sidrec study FILE`, got the former word 'run'"),
        (["report", "small.yaml"], r"as in `sidrec study FILE --report`, got the former word 'report'"),
        (["none.yaml"], r"none\.yaml"),
        (["small.yaml", "--runs", "0"], r"--runs"),
        (["small.yaml", "--jobs", "-1"], r"--jobs"),
        (["small.yaml", "--minutes", "0"], r"--minutes"),
    ],
)
def test_arguments_that_cannot_be_meant(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sidrec(["study", *words]) == 2
    assert re.search(said, capsys.readouterr().err)
