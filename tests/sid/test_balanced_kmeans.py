"""Balanced k-means: clusters of equal size, near the cheapest such assignment, and evener use of codes after it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from sidrec.config.learners import ResidualKMeansConfig
from sidrec.sid.learners.kmeans import SLACK, ResidualKMeans, balanced_assignment, balanced_kmeans
from sidrec.sid.quality import code_quality
from sidrec.sid.tokenizer import SideInformation


def assigned(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return balanced_assignment(points, centroids, np.zeros(len(centroids), dtype=np.float32))


def test_by_hand() -> None:
    """Three points near 0, one near 10: of the three, the one nearest to 10 has to go there."""
    points = np.array([[0.0], [0.5], [1.5], [9.0]], dtype=np.float32)
    assert assigned(points, np.array([[0], [10]], dtype=np.float32)).tolist() == [0, 0, 1, 1]
    centroids = balanced_kmeans(points, np.array([[0], [10]], dtype=np.float32), 1)
    assert centroids[:, 0].tolist() == [0.25, 5.25]


@pytest.mark.parametrize(("items", "clusters"), [(400, 9), (97, 97), (50, 1), (300, 32)])
def test_equal_sizes_at_nearly_the_least_cost(items: int, clusters: int) -> None:
    rng = np.random.default_rng(items)
    points = rng.standard_normal((items, 5)).astype(np.float32) ** 3
    centroids = points[:clusters] + 0.1
    owner = assigned(points, centroids)
    sizes = np.bincount(owner, minlength=clusters)
    assert sizes.max() - sizes.min() <= 1
    assert sizes.sum() == items
    costs = np.square(points[:, None] - centroids).sum(axis=2)
    rows, places = linear_sum_assignment(np.repeat(costs, sizes, axis=1))
    least = np.repeat(costs, sizes, axis=1)[rows, places].sum()
    nearest = costs.min(axis=1).sum()
    floor = 1e-4 * np.square(points).sum()
    assert least - 1e-3 <= costs[np.arange(items), owner].sum() <= least + SLACK * nearest + floor + 1e-3


def test_points_in_one_place_still_spread() -> None:
    for points in (np.ones((40, 3), dtype=np.float32), np.zeros((41, 2), dtype=np.float32)):
        sizes = np.bincount(assigned(points, points[:8]))
        assert (len(sizes), sizes.min(), sizes.max()) == (8, 5, 5 + len(points) % 2)


def skewed(items: int = 2000) -> np.ndarray:
    """Half of the items in one narrow cloud, the rest spread thin."""
    rng = np.random.default_rng(2)
    spread = np.where(np.arange(items) < items // 2, 0.3, 3.0)
    return (rng.standard_normal((items, 6)) * spread[:, None]).astype(np.float32)


def test_balanced_codebooks_are_used_more_evenly() -> None:
    vectors, loads = skewed(), []
    for balanced in (False, True):
        config = ResidualKMeansConfig(levels=2, codebook_size=16, balanced=balanced)
        tokenizer = ResidualKMeans.fit(vectors, config, 0, SideInformation())
        loads.append(code_quality(tokenizer.encode(vectors).codes_NL, tokenizer.codebook_sizes))
    plain, even = loads
    assert even.perplexity[0] > plain.perplexity[0] + 1
    assert even.top1_load[0] < plain.top1_load[0]
    assert even.top1_load[0] > 1 / 16  # items take the nearest code, so usage is not equal


def test_the_same_seed_gives_the_same_balanced_codebooks() -> None:
    config = ResidualKMeansConfig(levels=2, codebook_size=16, balanced=True)
    first, again = (ResidualKMeans.fit(skewed(500), config, 3, SideInformation()).arrays() for _ in range(2))
    assert np.array_equal(first["codebooks"], again["codebooks"])
    other = ResidualKMeans.fit(skewed(500), replace(config, balanced=False), 3, SideInformation()).arrays()
    assert not np.array_equal(first["codebooks"], other["codebooks"])


@pytest.mark.real_data
def test_evener_on_real_items(real_data: Path) -> None:
    vectors = np.load(real_data / "amazon-beauty" / "minilm_l6_v2_title_brand_cat_f16.npy")[:3000].astype(np.float32)
    perplexities = []
    for balanced in (False, True):
        config = ResidualKMeansConfig(levels=2, codebook_size=32, balanced=balanced, restarts=0)
        tokenizer = ResidualKMeans.fit(vectors, config, 0, SideInformation())
        perplexities.append(code_quality(tokenizer.encode(vectors).codes_NL, (32, 32)).perplexity)
    assert perplexities[1][0] > perplexities[0][0]
    assert perplexities[1][1] > perplexities[0][1]
