"""The claim's studies: every recipe is valid, and variants differ in nothing but what they are called for."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sidrec.config import load_mapping
from sidrec.study.definition import load_study
from sidrec.study.jobs import study_runs

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "benchmarks" / "recipes" / "claim").glob("*.yaml"))
STUDIES = sorted((ROOT / "benchmarks" / "studies").glob("claim*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = load_study(path)
    runs = {(run.dataset, run.variant): run for run in study_runs(study)}
    assert len(runs) == len(study.datasets) * len(study.variants)
    for run in runs.values():
        trained_on = run.checked().data.train_on
        assert trained_on == (("train", "validation") if study.split == "test" else ("train",)), run


def test_tuning_is_the_same_in_all_studies_and_never_looks_at_test() -> None:
    """But for the budget of the preset's choice, whose variants are many."""
    sections = {path.stem: yaml.safe_load(path.read_text())["tuning"] for path in STUDIES}
    of_the_choice = sections.pop("claim_choice")
    section, *others = sections.values()
    assert all(other == section for other in others)
    assert of_the_choice | {"trials": section["trials"], "runs": section["runs"]} == section
    assert section["split"] == "validation"


def test_a_variant_is_the_same_in_all_studies() -> None:
    known: dict[str, Any] = {}
    for path in STUDIES:
        for name, overrides in yaml.safe_load(path.read_text())["variants"].items():
            assert known.setdefault(name, overrides) == overrides, (path.stem, name)


def test_recipes_differ_in_data_batch_size_splits_and_backbone_alone() -> None:
    def common(path: Path) -> dict[str, Any]:
        recipe = load_mapping(path, "YAML file")
        del recipe["name"], recipe["tokenizer"]["vectors"], recipe["tokenizer"]["learner"]["codebook_size"]
        recipe["model"].pop("backbone", None)
        of_the_set = ("path", "catalog", "batch_size", "train_on", "workers")
        recipe["data"] = {key: value for key, value in recipe["data"].items() if key not in of_the_set}
        return recipe

    assert len(RECIPES) == 20
    assert all(common(path) == common(RECIPES[0]) for path in RECIPES)
