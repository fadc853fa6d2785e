"""Random codes: fixed by vector and seed, and meaning nothing."""

import hashlib

import numpy as np

from sidrec.config.learners import RandomCodesConfig
from sidrec.sid.learners.random_codes import RandomCodes
from sidrec.sid.tokenizer import SideInformation, Tokenizer

CONFIG = RandomCodesConfig(levels=2, codebook_size=10)


def fit(seed: int = 0, width: int = 3) -> RandomCodes:
    return RandomCodes.fit(np.zeros((1, width), dtype=np.float32), CONFIG, seed, SideInformation())


def test_codes_depend_on_vector_and_seed_alone() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    codes = fit().encode(vectors).codes_NL
    assert codes.tolist() == fit().encode(vectors[::-1]).codes_NL[::-1].tolist()
    assert codes.tolist() == fit().encode(vectors.astype(np.float64)).codes_NL.tolist()
    assert codes.tolist() != fit(seed=1).encode(vectors).codes_NL.tolist()


def test_a_hash_written_down_once() -> None:
    """Catalogs of older releases must extend: SHAKE-128 of "0:" and the float32 bytes, eight bytes per level, mod K."""
    digest = hashlib.shake_128(b"0:" + np.array([1, 2, 3], dtype="<f4").tobytes()).digest(16)
    expected = [int.from_bytes(digest[:8], "little") % 10, int.from_bytes(digest[8:], "little") % 10]
    assert fit().encode(np.array([[1, 2, 3]])).codes_NL.tolist() == [expected]


def test_codes_are_spread_evenly_and_neighbours_share_nothing() -> None:
    """20,000 vectors a hair apart: each of 10 codes gets 2,000 items, within five standard deviations (42)."""
    vectors = np.linspace(1, 1.01, 20_000, dtype=np.float32)[:, None]
    codes = fit(width=1).encode(vectors).codes_NL
    for level in range(2):
        counts = np.bincount(codes[:, level], minlength=10)
        assert abs(counts - 2_000).max() < 5 * 42.5
    agreement = (codes[1:] == codes[:-1]).all(axis=1).mean()
    assert abs(agreement - 0.01) < 0.005


def test_there_is_nothing_to_decode() -> None:
    tokenizer: Tokenizer = fit()
    assert tokenizer.decode(np.zeros((1, 2), dtype=np.int64)) is None
