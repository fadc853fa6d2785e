"""Quality of codes: every figure below can be checked by hand.

Four items, K = (2, 4):  (0, 0)  (0, 1)  (0, 1)  (1, 2)
level 1: shares 3/4, 1/4;  level 2: shares 1/4, 1/2, 1/4, 0;  whole SIDs: groups of 1, 2, 1.
"""

from collections import Counter
from math import exp, log

import numpy as np
import pytest

from sidrec.schema import ContractError
from sidrec.sid.learners.kmeans import ResidualKMeans
from sidrec.sid.quality import (
    EqualVectors,
    code_quality,
    embedding_hit_rate,
    equal_vectors,
    gini,
    group_sizes,
    quality_table,
    reconstruction_error,
)

CODES = np.array([[0, 0], [0, 1], [0, 1], [1, 2]])
SIZES = (2, 4)
H1 = -(3 / 4 * log(3 / 4) + 1 / 4 * log(1 / 4))
H2 = -(1 / 4 * log(1 / 4) + 1 / 2 * log(1 / 2) + 1 / 4 * log(1 / 4))


def test_codebook_usage_by_hand() -> None:
    quality = code_quality(CODES, SIZES)
    assert quality.items == 4
    assert quality.token_entropy_nats == pytest.approx([H1, H2])
    assert quality.token_entropy_bits == pytest.approx([H1 / log(2), 1.5])
    assert quality.mean_token_entropy_nats == pytest.approx((H1 + H2) / 2)
    assert quality.utilisation == [1.0, 3 / 4]
    assert quality.dead_codes == [0, 1]
    assert quality.perplexity == pytest.approx([exp(H1), 2 * 2**0.5])
    assert quality.mean_perplexity == pytest.approx((exp(H1) + 2**1.5) / 2)
    assert quality.min_perplexity == pytest.approx(exp(H1))
    assert quality.top1_load == [3 / 4, 1 / 2]


def test_collisions_by_hand() -> None:
    quality = code_quality(CODES, SIZES)
    assert quality.sid_entropy_nats == pytest.approx(H2)  # groups of 1, 2, 1 of four items
    assert quality.unique_prefixes == [2, 3]
    assert quality.collision_rate == 1 / 4  # 4 items, 3 SIDs
    assert quality.collided_item_rate == 2 / 4
    assert quality.max_group_size == 2
    assert quality.mean_group_size == pytest.approx(4 / 3)
    # ascending 1, 1, 2: 4/3 - 2 (3*1 + 2*1 + 1*2) / (3 * 4)
    assert quality.gini == pytest.approx(4 / 3 - 2 * 7 / 12)
    assert sorted(group_sizes(CODES, SIZES).tolist()) == [1, 1, 2]


def test_perfect_codes() -> None:
    """Every one of 16 items has its own of 4 x 4 SIDs: entropies at their bounds, nothing collides."""
    codes = np.array([[first, second] for first in range(4) for second in range(4)])
    quality = code_quality(codes, (4, 4))
    assert quality.token_entropy_nats == pytest.approx([log(4), log(4)])
    assert quality.token_entropy_bits == pytest.approx([2, 2])
    assert quality.sid_entropy_nats == pytest.approx(log(16))
    assert quality.unique_prefixes == [4, 16]
    assert (quality.collision_rate, quality.collided_item_rate) == (0, 0)
    assert quality.gini == pytest.approx(0)


def test_collapsed_codes() -> None:
    quality = code_quality(np.zeros((5, 2), dtype=np.int64), (4, 4))
    assert quality.token_entropy_nats == [0, 0]
    assert quality.perplexity == [1, 1]
    assert quality.dead_codes == [3, 3]
    assert quality.top1_load == [1, 1]
    assert (quality.collision_rate, quality.collided_item_rate) == (4 / 5, 1)
    assert (quality.max_group_size, quality.gini) == (5, 0)


def test_prefixes_of_long_sids_do_not_overflow() -> None:
    """8 levels of 8,192 codes: 2^104 possible SIDs."""
    codes = np.full((3, 8), 8191)
    codes[1, 0] = codes[2, 7] = 0
    assert code_quality(codes, (8192,) * 8).unique_prefixes == [2] * 7 + [3]


def test_gini_of_one_group_and_of_a_skewed_pair() -> None:
    assert gini(np.array([7])) == 0
    assert gini(np.array([9, 1])) == pytest.approx(3 / 2 - 2 * (2 * 1 + 1 * 9) / (2 * 10))  # 0.4


def test_no_items_are_refused() -> None:
    with pytest.raises(ContractError, match="codes: expected at least one item, got 0"):
        code_quality(np.zeros((0, 2), dtype=np.int64), (4, 4))


def test_reconstruction_by_hand() -> None:
    """Vectors (0, 0) and (4, 2), codes stand for (0, 1) and (4, 0): errors 1 and 4; mean (2, 1), deviations 5 and 5."""
    tokenizer = ResidualKMeans(np.array([[[0, 1], [4, 0]]], dtype=np.float32), beam=1)
    vectors = np.array([[0, 0], [4, 2]], dtype=np.float32)
    error = reconstruction_error(vectors, np.array([[0], [1]]), tokenizer, rows=1)  # also across chunks
    assert error is not None
    assert (error.squared_error, error.variance, error.unexplained_variance) == (2.5, 5, 0.5)


def test_reconstruction_with_weights_takes_each_item_s_own() -> None:
    class Weighted(ResidualKMeans):
        def decode(self, codes_NL: np.ndarray, weights_NL: np.ndarray | None = None) -> np.ndarray:
            assert weights_NL is not None
            return super().decode(codes_NL) * weights_NL

    tokenizer = Weighted(np.array([[[1, 0], [0, 1]]], dtype=np.float32), beam=1)
    vectors, codes = np.array([[3, 0], [0, 5]], dtype=np.float32), np.array([[0], [1]])
    error = reconstruction_error(vectors, codes, tokenizer, np.array([[3], [4]], dtype=np.float32), rows=1)
    assert error is not None
    assert error.squared_error == 0.5


def test_identical_vectors_have_nothing_to_explain() -> None:
    tokenizer = ResidualKMeans(np.array([[[1, 1]]], dtype=np.float32), beam=1)
    error = reconstruction_error(np.ones((3, 2), dtype=np.float32), np.zeros((3, 1), dtype=np.int64), tokenizer)
    assert error is not None
    assert error.unexplained_variance == 0


def test_embedding_hit_rate_by_hand() -> None:
    """Directions at 0, 10, 30 and 90 degrees. Nearest: 0->1, 1->0, 2->1, 3->2."""
    degrees = np.radians([0, 10, 30, 90])
    vectors = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    vectors[3] *= 100  # cosine does not care
    pairs = np.array([[0, 1], [0, 3], [2, 1], [3, 0], [2, 1], [1, 1]])  # one pair twice, one with itself
    # item 0: {1, 3}, finds 1 -> 1/2; item 2: {1} -> 1; item 3: {0} -> 0
    assert embedding_hit_rate(vectors, pairs, k=1) == pytest.approx((1 / 2 + 1 + 0) / 3)
    # two nearest: 0 -> 1, 2; 2 -> 1, 0; 3 -> 2, 1
    assert embedding_hit_rate(vectors, pairs, k=2) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert embedding_hit_rate(vectors, pairs, k=3) == 1
    assert embedding_hit_rate(vectors, pairs, k=50) == 1


@pytest.mark.parametrize("k", [1, 7, 40])
def test_embedding_hit_rate_equals_a_plain_loop(k: int) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((60, 4)).astype(np.float32)
    pairs = rng.integers(60, size=(300, 2))
    rates = []
    for query in np.unique(pairs[:, 0]):
        neighbours = set(pairs[pairs[:, 0] == query, 1].tolist()) - {int(query)}
        cosines = vectors @ vectors[query] / np.linalg.norm(vectors, axis=1)
        cosines[query] = -np.inf
        nearest = set(np.argsort(-cosines)[:k].tolist())
        rates += [len(neighbours & nearest) / len(neighbours)] if neighbours else []
    assert embedding_hit_rate(vectors, pairs, k) == pytest.approx(np.mean(rates))


def test_an_item_is_not_its_own_neighbour_even_among_duplicates() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert embedding_hit_rate(vectors, np.array([[0, 1], [1, 0]]), k=1) == 1
    with pytest.raises(ContractError, match="item pairs: expected at least one pair of different items"):
        embedding_hit_rate(vectors, np.array([[1, 1]]), k=1)


def test_table_lines_up() -> None:
    table = quality_table({"items": 4, "top1_load": [0.75, 0.5]}).splitlines()
    assert table == ["items                              4", "top1_load                     0.7500    0.5000"]


def _signed_zeros() -> np.ndarray:
    vectors = np.zeros((6, 3), dtype=np.float32)
    vectors[::2] *= -1
    return vectors


EQUAL = {
    "one item": np.ones((1, 4), dtype=np.float32),
    "all equal": np.ones((700, 3), dtype=np.float32),
    "one dimension": np.arange(900, dtype=np.float32)[:, None] % 300,
    "binary": (np.random.default_rng(1).random((3000, 11)) < 0.5).astype(np.float32),
    "one-hot": np.eye(40, dtype=np.float32)[np.random.default_rng(2).integers(40, size=600)],
    "powers of two": 2.0 ** np.random.default_rng(3).integers(-3, 3, size=(2000, 4)).astype(np.float32),
    "different": np.random.default_rng(4).standard_normal((1500, 7)).astype(np.float32),
    "swapped dimensions": np.array([[1, 2], [2, 1], [1, 2]], dtype=np.float32),
    "signed zeros": _signed_zeros(),
    "half precision": (np.random.default_rng(5).integers(3, size=(500, 5))).astype(np.float16),
    "float64": (np.random.default_rng(6).integers(3, size=(500, 5))).astype(np.float64),
    "a view": np.random.default_rng(7).integers(4, size=(1200, 10)).astype(np.float32)[::2, 3:6],
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_vectors_are_counted_bit_by_bit(name: str) -> None:
    counts = Counter(vector.tobytes() for vector in EQUAL[name])
    assert equal_vectors(EQUAL[name]) == EqualVectors(len(EQUAL[name]) - len(counts), max(counts.values()))
