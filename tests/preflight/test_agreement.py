"""Ranks that differ leave together, and the sentence says in what."""

from dataclasses import replace
from pathlib import Path

import pytest

from sidrec.errors import DisagreementError, RankError
from sidrec.preflight.run_checks import check_same_on_all_ranks, code_facts, data_facts, digest_of_files, recipe_facts
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log


def _agree(rank: int, world: int, facts: list[dict[str, str]]) -> tuple[str, str]:
    try:
        check_same_on_all_ranks(joined(rank, world), facts[rank])
    except (DisagreementError, RankError) as error:
        return type(error).__name__, str(error)
    return "", ""


def test_all_ranks_leave_with_the_rank_and_both_values() -> None:
    same = {"torch": "2.13.0", "train.epochs": "2"}
    other = same | {"train.epochs": "3"}
    sentence = "train.epochs: expected the same on all ranks, got 2 on rank 0 and 3 on rank 1"
    first, second = run_on_ranks(2, _agree, [same, other])
    assert first == ("DisagreementError", sentence)
    assert second == ("RankError", f"rank 0 stopped: {sentence}")
    assert run_on_ranks(2, _agree, [same, dict(same)]) == [("", ""), ("", "")]


def test_differing_recipe_values_are_listed_by_path(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    other = replace(recipe, data=replace(recipe.data, batch_size=128), seed=3)
    facts, changed = recipe_facts(recipe), recipe_facts(other)
    assert {name: (facts[name], changed[name]) for name in facts if facts[name] != changed[name]} == {
        "seed": ("0", "3"),
        "data.batch_size": ("64", "128"),
    }
    assert facts["optimizer.tables.lr"] == "0.05"


def test_another_manifest_or_catalog_is_a_disagreement(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = small_recipe(write_small_log(tmp_path / "a", seed=0))
    second = small_recipe(write_small_log(tmp_path / "b", rows=300))
    assert set(data_facts(first, "f").values()) & set(data_facts(second, "f").values()) == {"fingerprint f"}
    assert data_facts(first, "f") == data_facts(first, "f")
    assert data_facts(first, "f") != data_facts(first, "g")


def test_a_checkout_that_was_not_updated_is_a_disagreement(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("a = 1\n")
    before = digest_of_files(tmp_path)
    assert digest_of_files(tmp_path) == before
    (tmp_path / "one.py").write_text("a = 2\n")
    edited = digest_of_files(tmp_path)
    (tmp_path / "one.py").rename(tmp_path / "two.py")
    assert len({before, edited, digest_of_files(tmp_path)}) == 3


@pytest.mark.parametrize("name", ["sidrec", "torch", "torchrec", "FBGEMM", "files of sidrec"])
def test_versions_are_known(name: str) -> None:
    assert "None" not in code_facts()[name]
