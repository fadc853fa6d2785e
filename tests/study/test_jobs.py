"""The runs of a study: their numbers, their recipes, and the catalogs that the study fits for them."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from sidrec.study.definition import Study, load_study
from sidrec.study.jobs import Run, study_runs
from sidrec.study.results import run_table

ROOT = Path(__file__).parents[2]
TOKENIZER: dict[str, Any] = {"learner": {"kind": "residual_kmeans", "levels": 2, "codebook_size": 4}}
VARIANTS: dict[str, Any] = {
    "hid": {"model": {"item": {"kind": "hid"}}},
    "sid": {"model": {"item": {"kind": "sid"}}},
    "both": {},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _study(item: dict[str, Any] | None = None, tokenizer: dict[str, Any] | None = TOKENIZER, **keys: Any) -> Study:
    recipe = {"name": "shop", "data": {"path": "data", "catalog": "mine"}}
    recipe |= {"tokenizer": tokenizer} if tokenizer else {}
    recipe |= {"model": {"embedding_dim": 8, "item": item or {"kind": "sid_coord"}}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    Path("small.yaml").write_text(
        yaml.safe_dump({"datasets": {"shop": "recipe.yaml"}, "variants": VARIANTS, **keys}, sort_keys=False)
    )
    return load_study(Path("small.yaml"))


def _one(study: Study, variant: str, number: int) -> Run:
    (found,) = [run for run in study_runs(study) if (run.variant, run.number) == (variant, number)]
    return found


def test_runs_go_number_by_number_over_all_variants() -> None:
    runs = study_runs(_study(runs=2, runs_of={"hid": [0, 5]}))
    numbers = [(run.number, run.variant) for run in runs]
    assert numbers == [(0, "hid"), (0, "sid"), (0, "both"), (1, "sid"), (1, "both"), (5, "hid")]
    assert [run.recipe["seed"] for run in runs] == [number for number, _ in numbers]


def test_ten_runs_unless_the_study_says_otherwise() -> None:
    assert _study().runs == tuple(range(10))


def test_former_names_of_keys_are_read() -> None:
    study = _study(seeds=[3, 4], seeds_of={"hid": [1]})
    assert (study.numbers("sid"), study.numbers("hid")) == ((3, 4), (1,))


def test_a_variants_item_section_replaces_the_recipes_of_the_same_kind() -> None:
    item = {"kind": "sid_coord", "history": ["hid", "sid"], "gate": {"kind": "sum"}}
    changed = {"kind": "sid_coord", "gate": {"kind": "mean"}}
    variants = {"plain": {}, "changed": {"model": {"item": changed}}, "wider": {"model": {"embedding_dim": 16}}}
    study = _study(item, variants=variants, runs=1)
    models = {run.variant: run.recipe["model"] for run in study_runs(study)}
    assert models["plain"] == {"embedding_dim": 8, "item": item}
    assert models["changed"] == {"embedding_dim": 8, "item": changed}
    assert models["wider"] == {"embedding_dim": 16, "item": item}


def test_tuned_values_change_single_keys_of_a_variants_item() -> None:
    tuned = {"shop": {"sid": {"model": {"item": {"granularities": ["s1"]}}}}}
    assert _one(_study(tuned=tuned), "sid", 0).recipe["model"]["item"] == {"kind": "sid", "granularities": ["s1"]}


def test_run_r_reads_fit_r_of_a_catalog_that_variants_share() -> None:
    study = _study(runs=3)
    catalogs = [_one(study, "sid", number).checked().data.catalog for number in range(3)]
    assert [path.name for path in catalogs] == ["fit0", "fit1", "fit2"]
    assert len({path.parent for path in catalogs}) == 1
    assert catalogs[0].parent.parent == Path("runs/studies/catalogs/shop")
    both = _one(study, "both", 2)
    assert both.checked().data.catalog == catalogs[2]
    assert (both.fit, both.checked().tokenizer.seed) == (2, 2)


def test_fewer_fits_are_used_in_turn() -> None:
    study = _study(runs=4, fits=3)
    assert [_one(study, "sid", number).fit for number in range(4)] == [0, 1, 2, 0]
    assert _one(study, "sid", 3).checked().tokenizer.seed == 0


def test_another_tokenizer_has_catalogs_of_its_own() -> None:
    larger = {"tokenizer": {"learner": {"codebook_size": 8}}}
    study = _study(variants={"small": {}, "large": larger}, runs=1)
    small, large = (_one(study, name, 0).checked() for name in ("small", "large"))
    assert large.tokenizer.learner.codebook_size == 8
    assert small.data.catalog.parent != large.data.catalog.parent


def test_a_variant_without_sids_has_no_fit_and_does_not_depend_on_the_tokenizer() -> None:
    run = _one(_study(), "hid", 1)
    assert run.fit is None
    larger = {"learner": {**TOKENIZER["learner"], "codebook_size": 8}}
    assert _one(_study(tokenizer=larger), "hid", 1).recipe_hash == run.recipe_hash


@pytest.mark.parametrize("changes", [{"tokenizer": None}, {"fits": 0}])
def test_without_fits_every_run_reads_the_recipes_catalog(changes: dict[str, Any]) -> None:
    study = _study(runs=2, **changes)
    assert {run.recipe["data"]["catalog"] for run in study_runs(study)} == {"mine"}
    assert {run.fit for run in study_runs(study)} == {None}


def test_a_recipe_is_the_same_wherever_its_catalog_is_put() -> None:
    here, there = (_one(_study(work=work), "sid", 1) for work in ("a", "b"))
    assert here.recipe["data"] != there.recipe["data"]
    assert here.recipe_hash == there.recipe_hash
    assert here.recipe_hash != _one(_study(fits=1), "sid", 1).recipe_hash


def test_results_of_earlier_versions_are_read() -> None:
    path = ROOT / "benchmarks/results/learners_beauty/runs.parquet"
    assert {"seed", "run"} <= set(pq.read_schema(path).names)  # the file is of an earlier version
    result = run_table(path).get("beauty", "adasid", 3)
    assert result is not None
    assert (result["run"], result["fit"], result["step_seconds"]) == (3, None, None)
    assert result["recipe"]["seed"] == 3
    assert result["facts"]["ranks"] == 1
