"""OPQ: codes by eye, the rotation's use, any K, rows that do not depend on their neighbours."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from sidrec.config.learners import OpqConfig, TokenizerConfig
from sidrec.schema import ContractError
from sidrec.sid.learners import opq
from sidrec.sid.learners.opq import Opq
from sidrec.sid.learners.registry import fit_tokenizer, load_tokenizer, save_tokenizer
from sidrec.sid.quality import reconstruction_error
from sidrec.sid.tokenizer import SideInformation

SIDE = SideInformation()
QUICK = OpqConfig(levels=2, codebook_size=5, iterations=10)


def swapped_axes() -> Opq:
    """Mean (1, 2, 0), components (y, x); level 1 means y in {-1, 1}, level 2 means x in {0, 10}."""
    axes = np.array([[0, 1, 0], [1, 0, 0]], dtype=np.float32)
    codebooks = np.array([[[-1], [1]], [[0], [10]]], dtype=np.float32)
    return Opq(np.array([1, 2, 0], dtype=np.float32), axes, codebooks)


def test_codes_by_eye() -> None:
    vectors = np.array([[1.5, 5, 7], [10, 0, 0]], dtype=np.float32)
    codes = swapped_axes().encode(vectors).codes_NL
    assert codes.dtype == np.int64
    assert codes.tolist() == [[1, 0], [0, 1]]
    assert swapped_axes().decode(codes).tolist() == [[1, 3, 0], [11, 1, 0]]
    assert swapped_axes().last_level_costs(vectors, codes).tolist() == [[0.25, 90.25], [81, 1]]


def decaying(items: int = 600) -> np.ndarray:
    """Directions of falling variance, turned so that no coordinate shows them, around a mean that is not 0."""
    rng = np.random.default_rng(5)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    return (3 + rng.standard_normal((items, 6)) * [8, 4, 2, 1, 0.5, 0] @ turn).astype(np.float32)


def test_the_rotation_shares_variance_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Principal axes alone put nearly all variance into the first level; rotated, the same codes say more."""
    vectors, config, errors = decaying(), replace(QUICK, codebook_size=16), []
    for rotate in (True, False):
        if not rotate:
            monkeypatch.setattr(opq, "_rotation", lambda points, *_: np.eye(points.shape[1], dtype=np.float32))
        tokenizer = Opq.fit(vectors, config, 0, SIDE)
        axes = tokenizer.arrays()["axes"]
        assert axes @ axes.T == pytest.approx(np.eye(6), abs=1e-5)
        error = reconstruction_error(vectors, tokenizer.encode(vectors).codes_NL, tokenizer)
        assert error is not None
        errors.append(error.unexplained_variance)
    assert errors[0] < 0.8 * errors[1]


def test_as_many_codes_as_places_leave_no_error() -> None:
    """Five places on a line through space: one component holds them all."""
    places = np.outer(np.repeat([0, 1, 4, 9, 16], 20), [3, -4, 12]).astype(np.float32) + 1
    tokenizer = Opq.fit(places, replace(QUICK, levels=1, components=1), 0, SIDE)
    codes = tokenizer.encode(places).codes_NL
    assert len(np.unique(codes)) == 5
    assert tokenizer.decode(codes) == pytest.approx(places, abs=1e-3)


@pytest.mark.parametrize(("size", "bits"), [(16, 4), (100, 7), (5, 2)])
def test_any_codebook_size(size: int, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rotation is learned with the nearest power of two, the codebooks have exactly K codes."""
    asked = []

    def quantizer(width: int, parts: int, given: int) -> faiss.ProductQuantizer:
        asked.append(given)
        return original(width, parts, given)

    original = faiss.ProductQuantizer
    monkeypatch.setattr(faiss, "ProductQuantizer", quantizer)
    vectors = np.random.default_rng(0).standard_normal((700, 8)).astype(np.float32)
    tokenizer = Opq.fit(vectors, replace(QUICK, codebook_size=size), 0, SIDE)
    codes = tokenizer.encode(vectors).codes_NL
    assert asked == [bits]
    assert [len(np.unique(level)) for level in codes.T] == [size, size]


def test_components_left_out_are_as_many_as_the_levels_share() -> None:
    vectors = np.random.default_rng(0).standard_normal((400, 140)).astype(np.float32)
    for width, levels, expected in ((140, 6, 126), (140, 4, 128), (20, 6, 18), (6, 6, 6)):
        config = replace(QUICK, levels=levels, codebook_size=2)
        assert Opq.fit(vectors[:, :width], config, 0, SIDE).arrays()["axes"].shape == (expected, width)


def test_a_row_is_encoded_the_same_in_any_company() -> None:
    vectors = np.random.default_rng(3).standard_normal((opq.ROWS + 300, 48)).astype(np.float32)
    tokenizer = Opq.fit(vectors[:1000], replace(QUICK, levels=6, codebook_size=50), 0, SIDE)
    whole = tokenizer.encode(vectors).codes_NL
    assert tokenizer.encode(vectors[-7:]).codes_NL.tolist() == whole[-7:].tolist()
    assert tokenizer.encode(vectors[::-1]).codes_NL[::-1].tolist() == whole.tolist()
    costs = tokenizer.last_level_costs(vectors, whole)
    assert (costs.argmin(axis=1) == whole[:, -1]).mean() > 0.999


def test_a_fit_is_a_function_of_its_seed_and_leaves_vectors_alone() -> None:
    vectors = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)
    before = vectors.copy()
    first, again, other = (Opq.fit(vectors, QUICK, seed, SIDE).arrays() for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["codebooks"], other["codebooks"])
    assert np.array_equal(vectors, before)
    few = replace(QUICK, points_per_code=20)
    assert not np.array_equal(Opq.fit(vectors, few, 0, SIDE).arrays()["mean"], first["mean"])


def test_an_artifact_gives_the_same_codes_in_another_process(tmp_path: Path) -> None:
    vectors = decaying()
    config = TokenizerConfig(learner=QUICK)
    tokenizer = fit_tokenizer(vectors, config, SIDE)
    save_tokenizer(tokenizer, config, tmp_path / "tokenizer")
    np.save(tmp_path / "vectors.npy", vectors)
    script = (
        "import sys, numpy as np; from pathlib import Path; from sidrec.sid.learners.registry import load_tokenizer; "
    )
    script += "print(load_tokenizer(Path(sys.argv[1]))[0].encode(np.load(sys.argv[2])).codes_NL.tolist())"
    command = [sys.executable, "-c", script, str(tmp_path / "tokenizer"), str(tmp_path / "vectors.npy")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert printed == str(tokenizer.encode(vectors).codes_NL.tolist())
    assert load_tokenizer(tmp_path / "tokenizer")[1] == config


@pytest.mark.parametrize(
    ("config", "items", "sentence"),
    [
        (QUICK, 4, "expected at least 5 items for codebook_size 5, got 4 items"),
        (
            replace(QUICK, levels=9),
            50,
            "expected at least 9 dimensions and items, one per level of opq, got 50 items of",
        ),
        (replace(QUICK, components=10), 50, "dimensions and items for components 10, got 50 items of width 8"),
    ],
)
def test_vectors_that_cannot_support_it(config: OpqConfig, items: int, sentence: str) -> None:
    with pytest.raises(ContractError, match=f"item vectors: expected .*{sentence.removeprefix('expected ')}"):
        Opq.fit(np.ones((items, 8), dtype=np.float32), config, 0, SIDE)


def test_components_must_be_shared_out_evenly() -> None:
    with pytest.raises(ValidationError, match="expected components as a multiple of levels, got 10 for 3"):
        TypeAdapter(OpqConfig).validate_python({"kind": "opq", "levels": 3, "components": 10})


def test_width_must_fit() -> None:
    with pytest.raises(ContractError, match=r"expected shape \[items, 3\], as the tokenizer was fitted, got \(2, 4\)"):
        swapped_axes().encode(np.zeros((2, 4), dtype=np.float32))
