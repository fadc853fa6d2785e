"""Residual k-means: codebooks that can be read by eye, faiss's own beam search as the reference, real items."""

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from sidrec.config.learners import ResidualKMeansConfig
from sidrec.schema import ContractError
from sidrec.sid.learners.kmeans import ResidualKMeans
from sidrec.sid.quality import code_quality, reconstruction_error
from sidrec.sid.tokenizer import SideInformation

SIDE = SideInformation()


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def digits() -> ResidualKMeans:
    """Level 1 means 0, 10 or 20, level 2 means 0, 1 or 2."""
    return ResidualKMeans(np.stack([column(0, 10, 20), column(0, 1, 2)]), beam=1)


def test_codes_by_eye() -> None:
    codes = digits().encode(column(0, 11.2, 22, 1.9, -5)).codes_NL
    assert codes.dtype == np.int64
    assert codes.tolist() == [[0, 0], [1, 1], [2, 2], [0, 2], [0, 0]]
    assert digits().decode(codes)[:, 0].tolist() == [0, 11, 22, 2, 0]


def test_a_beam_finds_what_the_greedy_walk_misses() -> None:
    """6 is nearer to 10 than to 0, but 0 + 5 is nearer than 10 + 1."""
    codebooks = np.stack([column(0, 10), column(1, 5)])
    assert ResidualKMeans(codebooks, beam=1).encode(column(6)).codes_NL.tolist() == [[1, 0]]
    assert ResidualKMeans(codebooks, beam=2).encode(column(6)).codes_NL.tolist() == [[0, 1]]
    assert ResidualKMeans(codebooks, beam=9).encode(column(6)).codes_NL.tolist() == [[0, 1]]


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_encode_equals_faiss_beam_search(beam: int) -> None:
    rng = np.random.default_rng(3)
    codebooks = rng.standard_normal((3, 16, 8)).astype(np.float32)
    vectors = 2 * rng.standard_normal((500, 8)).astype(np.float32)
    reference = faiss.ResidualQuantizer(8, 3, 4)
    faiss.copy_array_to_vector(codebooks.ravel(), reference.codebooks)
    reference.is_trained, reference.max_beam_size = True, beam
    packed = reference.compute_codes(vectors).astype(np.int64)
    bits = packed[:, 0] | packed[:, 1] << 8  # three codes of four bits, lowest first
    expected = np.stack([bits & 15, bits >> 4 & 15, bits >> 8 & 15], axis=1)
    assert ResidualKMeans(codebooks, beam).encode(vectors).codes_NL.tolist() == expected.tolist()


def test_many_rows_encode_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    tokenizer = ResidualKMeans(rng.standard_normal((2, 5, 4)).astype(np.float32), beam=2)
    vectors = rng.standard_normal((33, 4)).astype(np.float32)
    whole = tokenizer.encode(vectors).codes_NL
    four_rows_at_a_time = tokenizer.encode(vectors, distances=40)
    assert four_rows_at_a_time.codes_NL.tolist() == whole.tolist()
    assert [tokenizer.encode(row[None]).codes_NL[0].tolist() for row in vectors] == whole.tolist()


def test_fit_finds_clusters_within_clusters() -> None:
    """Three far groups of three near values, K = 3 (no power of two): nine SIDs, no error."""
    values = column(*[base + offset for base in (0, 100, 300) for offset in (0, 5, 11)])
    vectors = np.repeat(np.concatenate([values, np.zeros_like(values)], axis=1), 20, axis=0)
    config = ResidualKMeansConfig(levels=3, codebook_size=3)
    tokenizer = ResidualKMeans.fit(vectors, config, 0, SIDE)
    codes = tokenizer.encode(vectors).codes_NL
    assert tokenizer.codebook_sizes == (3, 3, 3)
    groups = [len(np.unique(codes[start : start + 60, 0])) for start in (0, 60, 120)]
    assert (groups, len(np.unique(codes[:, 0]))) == ([1, 1, 1], 3)
    assert len(np.unique(codes, axis=0)) == 9
    error = reconstruction_error(vectors, codes, tokenizer)
    assert error is not None
    assert error.unexplained_variance < 1e-5


def far_clusters() -> np.ndarray:
    """Eight far points on the corners of a cube, 30 items around each: no one axis tells them apart."""
    corners = 10.0 * np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    noise = np.random.default_rng(4).standard_normal((240, 3))
    return (np.repeat(corners, 30, axis=0) + 0.1 * noise).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_of_all_starts_the_lowest_error_is_kept(seed: int) -> None:
    vectors, errors = far_clusters(), []
    for restarts in (0, 1, 3, 8):
        config = ResidualKMeansConfig(levels=1, codebook_size=8, restarts=restarts)
        tokenizer = ResidualKMeans.fit(vectors, config, seed, SIDE)
        error = reconstruction_error(vectors, tokenizer.encode(vectors).codes_NL, tokenizer)
        assert error is not None
        errors.append(error.squared_error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.04  # three dimensions of variance 0.01


def test_fit_is_a_function_of_its_seed() -> None:
    vectors = np.random.default_rng(1).standard_normal((400, 16)).astype(np.float32)
    config = ResidualKMeansConfig(levels=2, codebook_size=8)
    first, again, other = (ResidualKMeans.fit(vectors, config, seed, SIDE).arrays()["codebooks"] for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_subsampled_fit_is_seeded_too_and_leaves_vectors_alone() -> None:
    vectors = np.random.default_rng(1).standard_normal((400, 4)).astype(np.float32)
    before = vectors.copy()
    config = ResidualKMeansConfig(levels=2, codebook_size=4, points_per_code=10)
    first, again = (ResidualKMeans.fit(vectors, config, 2, SIDE).arrays()["codebooks"] for _ in range(2))
    every = ResidualKMeans.fit(vectors, replace(config, points_per_code=100), 2, SIDE).arrays()["codebooks"]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, every)
    assert np.array_equal(vectors, before)


def test_fewer_distinct_vectors_than_codes_still_fit() -> None:
    vectors = np.repeat(np.eye(2, dtype=np.float32), 8, axis=0)
    tokenizer = ResidualKMeans.fit(vectors, ResidualKMeansConfig(levels=2, codebook_size=5), 0, SIDE)
    assert np.isfinite(tokenizer.arrays()["codebooks"]).all()
    codes = tokenizer.encode(vectors).codes_NL
    assert len(np.unique(codes, axis=0)) == 2


def test_fewer_items_than_codes_is_one_message() -> None:
    with pytest.raises(
        ContractError, match="item vectors: expected at least 256 items for codebook_size 256, got 10 it"
    ):
        ResidualKMeans.fit(np.ones((10, 4), dtype=np.float32), ResidualKMeansConfig(), 0, SIDE)


def test_few_items_per_code_are_fitted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    vectors = np.random.default_rng(1).standard_normal((77, 4)).astype(np.float32)
    ResidualKMeans.fit(vectors, ResidualKMeansConfig(levels=1, codebook_size=2), 0, SIDE)
    assert "77 items for 2 codes per level" in caplog.text


def test_width_must_fit() -> None:
    with pytest.raises(ContractError, match=r"expected shape \[items, 1\], as the tokenizer was fitted, got \(2, 3\)"):
        digits().encode(np.zeros((2, 3), dtype=np.float32))


@pytest.mark.real_data
def test_growing_dimensions_beat_plain_kmeans_on_real_items(real_data: Path) -> None:
    """Why it is the default (benchmarks/residual_kmeans_choice.md): less error, fewer collisions, evener levels."""
    vectors = np.load(real_data / "amazon-beauty" / "minilm_l6_v2_title_brand_cat_f16.npy")[:4000].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    grown = ResidualKMeansConfig(codebook_size=64, restarts=0)
    plain = replace(grown, dimension_steps=1, iterations=100)
    error, collisions, perplexity = [], [], []
    for config in (grown, plain):
        tokenizer = ResidualKMeans.fit(vectors, config, 0, SIDE)
        codes = tokenizer.encode(vectors).codes_NL
        quality = code_quality(codes, tokenizer.codebook_sizes)
        reconstruction = reconstruction_error(vectors, codes, tokenizer)
        assert reconstruction is not None
        error.append(reconstruction.unexplained_variance)
        collisions.append(quality.collision_rate)
        perplexity.append(quality.min_perplexity)
    assert error[0] < error[1]
    assert collisions[0] < collisions[1]
    assert perplexity[0] > perplexity[1]
