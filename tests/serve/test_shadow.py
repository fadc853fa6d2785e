"""`sidrec shadow` says how scores and ranks of the same rows change between two versions."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from sidrec import cli
from sidrec.io.files import write_text
from sidrec.serve.bundle import Bundle, file_of
from sidrec.serve.shadow import changed_tops, rank_correlations
from tests.serve.conftest import World


@pytest.fixture(scope="module")
def other(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version whose HIDs are others, without golden rows."""
    folder = tmp_path_factory.mktemp("other") / "version"
    shutil.copytree(Bundle(world.bundle).folder, folder)
    hids = np.load(folder / "hid.f32.npy")
    np.save(folder / "hid.f32.npy", hids + np.random.default_rng(0).normal(0, 0.3, hids.shape).astype(np.float32))
    about = Bundle(folder, check=False).description
    files = {name: file_of(folder / name) for name in about.files if name != "golden.npz"}
    write_text(folder / "bundle.json", replace(about, files=files).text())
    return folder


def test_a_version_changes_nothing_against_itself(world: World, tmp_path: Path) -> None:
    words = ["shadow", str(world.bundle), str(world.bundle), str(world.rows), "--top", "3"]
    assert cli.main([*words, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [change["items"] for change in found["changes"]] == ["all", "head", "tail", "cold"]
    assert found["changes"][0]["rows"] == sum(change["rows"] for change in found["changes"][1:]) == 200
    for change in found["changes"][:3]:
        assert (change["spearman"], change["within_users"]) == (pytest.approx(1), pytest.approx(1))
        assert change["difference"] == 0
    assert found["users"] > 20
    assert found["changed_tops"] == 0


def test_another_version_changes_scores_ranks_and_tops(
    world: World, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["shadow", str(world.bundle), str(other), str(world.rows), "--top", "3"]
    assert cli.main([*words, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    said = capsys.readouterr().out
    assert said.startswith(f"{found['version']} and {found['other']}\n")
    assert f"top 3 changes for {found['changed_tops']:.2%} of {found['users']:,} users with more rows" in said
    whole = found["changes"][0]
    scores = []
    for path, name in ((world.bundle, "one"), (other, "two")):
        assert cli.main(["score", str(path), str(world.rows), str(tmp_path / name)]) == 0
        scores.append(pq.read_table(tmp_path / name / "part-00000.parquet")["score"].to_numpy().astype(np.float64))
    assert whole["difference"] == pytest.approx(np.abs(scores[0] - scores[1]).mean())
    assert whole["spearman"] == pytest.approx(spearmanr(*scores).statistic)
    assert 0 < found["changed_tops"] <= 1


def test_correlations_within_groups_are_spearmans() -> None:
    random = np.random.default_rng(0)
    group_N, one_N = random.integers(0, 20, 500) * 3, random.integers(0, 8, 500).astype(float)
    other_N = one_N + random.normal(0, 3, 500)
    expected = [spearmanr(one_N[group_N == of], other_N[group_N == of]).statistic for of in np.unique(group_N)]
    np.testing.assert_allclose(rank_correlations(group_N, one_N, other_N), expected)
    assert np.isnan(rank_correlations(np.array([0, 1, 1]), np.array([1.0, 2, 2]), np.array([1.0, 2, 3]))).all()


def test_tops_are_sets_of_users_with_more_rows() -> None:
    user_N = np.array([0, 1, 0, 0, 1, 2, 2, 2])
    one_N = np.array([3.0, 1, 2, 1, 2, 1, 2, 3])
    same_N = np.array([2.0, 2, 3, 1, 1, 1, 3, 2])  # the best two exchange their places
    assert changed_tops(user_N, one_N, same_N, top=2) == (2, 0.0)
    assert changed_tops(user_N, one_N, -one_N, top=2) == (2, 1.0)
    assert changed_tops(user_N, one_N, one_N, top=3) == (0, None)
