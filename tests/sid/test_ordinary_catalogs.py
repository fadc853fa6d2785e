"""`sidrec fit` on catalogs of every size, shape and length that users have: it fits, or one sentence says why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sidrec import cli
from sidrec.sid.catalog import load_catalog
from tests.sid.item_files import clustered_vectors, write_items


def normal(items: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((items, width)).astype(np.float32)


def fit(folder: Path, vectors: np.ndarray, normalize: bool = True, **learner: Any) -> int:
    write_items(folder / "data" / "items.parquet", np.arange(1, len(vectors) + 1), text=vectors)
    sections = {
        "name": "ordinary",
        "data": {"path": str(folder / "data"), "catalog": str(folder / "catalog")},
        "tokenizer": {"normalize": normalize, "learner": learner},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(sections))
    return cli.main(["fit", str(folder / "recipe.yaml")])


KMEANS: dict[str, Any] = {"kind": "residual_kmeans", "restarts": 1, "iterations": 5}
OPQ: dict[str, Any] = {"kind": "opq", "levels": 2, "iterations": 5}
RQVAE: dict[str, Any] = {"kind": "rqvae", "width": 4, "hidden": [8], "training": {"epochs": 1, "batch_size": 64}}


@pytest.mark.parametrize(
    ("items", "width", "learner"),
    [
        (300, 768, {**KMEANS, "codebook_size": 256}),
        (30, 64, {**KMEANS, "codebook_size": 8}),
        (600, 768, {**KMEANS, "codebook_size": 2}),
        (900, 768, {**KMEANS, "codebook_size": 8, "points_per_code": 64}),
        (40, 64, {**KMEANS, "codebook_size": 8, "balanced": True}),
        (8, 64, {**KMEANS, "codebook_size": 8}),
        (64, 64, {**KMEANS, "codebook_size": 16}),
        (65, 64, {**KMEANS, "codebook_size": 16}),
        (50, 1, {**KMEANS, "codebook_size": 8}),
        (2, 5, {**KMEANS, "codebook_size": 2}),
        (2, 5, {**KMEANS, "codebook_size": 2, "beam": 4}),
        (30, 64, {**OPQ, "codebook_size": 8}),
        (9, 3, {**OPQ, "codebook_size": 8}),
        (300, 768, {**OPQ, "codebook_size": 256}),
        (30, 64, {**RQVAE, "codebook_size": 8}),
        (12, 300, {**RQVAE, "codebook_size": 4}),
    ],
)
def test_few_items_wide_or_narrow(items: int, width: int, learner: dict[str, Any], tmp_path: Path) -> None:
    assert fit(tmp_path, normal(items, width), **learner) == 0
    assert len(load_catalog(tmp_path / "catalog")) == items


@pytest.mark.parametrize("learner", [KMEANS, {**KMEANS, "balanced": True}, OPQ, RQVAE], ids=lambda one: one["kind"])
@pytest.mark.parametrize("distinct", [2, 5, 40])
def test_items_with_equal_vectors(
    distinct: int, learner: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal vectors get equal SIDs, and are no fault of the learner's."""
    vectors = np.repeat(normal(distinct, 16), 4, axis=0)
    assert fit(tmp_path, vectors, **learner, codebook_size=8) == 0
    codes_NL = load_catalog(tmp_path / "catalog").codes_NL
    assert (codes_NL.reshape(distinct, 4, -1) == codes_NL.reshape(distinct, 4, -1)[:, :1]).all()
    assert json.loads((tmp_path / "catalog" / "report.json").read_text())["items_with_equal_vectors"] == 3 * distinct


@pytest.mark.parametrize("power", [-110, -60, -41, 60, 100, 120])
@pytest.mark.parametrize("learner", [KMEANS, OPQ], ids=lambda one: one["kind"])
def test_extreme_lengths_change_no_code(power: int, learner: dict[str, Any], tmp_path: Path) -> None:
    """Bit by bit: a power of two rounds nothing."""
    vectors = clustered_vectors(60, 16)
    for folder, scaled in (("ordinary", vectors), ("extreme", np.ldexp(vectors, power))):
        assert fit(tmp_path / folder, scaled, **learner, codebook_size=4) == 0
    ordinary, extreme = [load_catalog(tmp_path / folder / "catalog") for folder in ("ordinary", "extreme")]
    assert ordinary.fingerprint == extreme.fingerprint


@pytest.mark.parametrize("scale", [1e-30, 1e20, 1e30])
def test_extreme_lengths_that_nothing_scales(scale: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = clustered_vectors(60, 16) * np.float32(scale)
    assert fit(tmp_path, vectors, normalize=False, **KMEANS, codebook_size=4) == 2
    assert "expected vectors of length 1e-15 to 1e+18" in capsys.readouterr().err
    assert not (tmp_path / "catalog").exists()


def near_equal(items: int) -> np.ndarray:
    """One direction, and differences below what float32 keeps of distances."""
    vectors = np.ones((items, 8), np.float32)
    vectors[1::2, 0] += 1e-7
    return vectors


def test_a_total_collapse_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path, near_equal(100), normalize=False, **RQVAE, codebook_size=8) == 2
    refused = capsys.readouterr().err
    assert "expected codes that tell items apart, got one semantic ID for all 100 items" in refused
    assert not (tmp_path / "catalog").exists()


def test_equal_vectors_alone_are_no_collapse(tmp_path: Path) -> None:
    assert fit(tmp_path, np.ones((100, 8), np.float32), **RQVAE, codebook_size=8) == 0


@pytest.mark.parametrize(
    ("vectors", "learner", "words"),
    [
        (lambda: normal(400, 16), {**KMEANS, "codebook_size": 16}, "codes: within all bounds: collision rate 0.0"),
        (
            lambda: normal(400, 16),
            {**KMEANS, "levels": 1, "codebook_size": 4},
            "codes: POOR: collision rate 0.990 (at ",
        ),
        (
            lambda: np.repeat(normal(40, 16), 10, axis=0),
            {**KMEANS, "codebook_size": 16},
            "apart from 360 items with equal vectors (at most 0.3); largest group 10 of 400 items (at most 10)",
        ),
    ],
)
def test_a_fit_ends_with_a_verdict(
    vectors: Callable[[], np.ndarray],
    learner: dict[str, Any],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fit(tmp_path, vectors(), **learner) == 0
    (verdict,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("codes: ")]
    assert words in verdict


def test_items_without_content_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = normal(40, 8)
    vectors[::4] = 0
    assert fit(tmp_path, vectors, **KMEANS, codebook_size=8) == 0
    expected = "10 of 40 items have no content in text and get no semantic ID: items 1, 5, 9, 13, 17, ..."
    assert expected in capsys.readouterr().out
    catalog = load_catalog(tmp_path / "catalog")
    assert len(catalog) == 30
    assert (catalog.codes_by_id(41)[1::4] == -1).all()
