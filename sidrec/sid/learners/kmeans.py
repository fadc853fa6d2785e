"""Residual k-means: cluster the vectors, subtract the nearest centroid, cluster the residuals.

In order: the learner, k-means by faiss (shared with opq), balanced k-means.

Shapes: N items or points, V vector width, L levels, K codes per level or clusters, R rows at a time, W partial SIDs
kept (beam), P points without a place.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Self

import faiss
import numpy as np

from sidrec.config.learners import ResidualKMeansConfig
from sidrec.io.progress import Bar
from sidrec.schema import ContractError
from sidrec.sid.tokenizer import Encoded, SideInformation, Tokenizer, check_width

DISTANCES = 1 << 18  # distances computed at a time while encoding; they fit in the cache
FEW_POINTS = 39  # training vectors per code; with fewer, centroids are unreliable, and faiss warns too
BLOCK = 1 << 22  # costs in memory at a time
SLACK = 0.05  # least step of a bid, as a share of the mean squared distance from a point to its centroid

_log = logging.getLogger(__name__)


class ResidualKMeans(Tokenizer):
    """Residual k-means (RQ-KMeans of QARM, arXiv 2411.11739, and OneRec, arXiv 2502.18965). codebooks_LKV: float32.

    r_0 = x, code_l = argmin_k |r_(l-1) - c_lk|^2, r_l = r_(l-1) - c_l,code_l. x' = sum_l c_l,code_l

    [N, V] -> codes [N, L]. Needs no training by gradient; the default learner.

    Each level keeps the best of several searches (`benchmarks/residual_kmeans_choice.md`). On real items the winner is
    k-means that starts on the first principal axis and adds more axes (faiss ProgressiveDimClustering): lower error,
    more even codes. Where a few clusters lie far apart, one axis cannot separate them, and plain k-means from a
    k-means++ start wins.

    `balanced` replaces the winner's clusters by clusters of equal size; codewords are their means. Encoding still takes
    the nearest code, for catalog items too, so that a row's codes depend on that row alone: usage becomes more even,
    not equal.
    """

    def __init__(self, codebooks_LKV: np.ndarray, beam: int) -> None:
        self._codebooks_LKV = codebooks_LKV
        self._beam = beam

    @classmethod
    def fit(
        cls,
        vectors_NV: np.ndarray,
        config: ResidualKMeansConfig,
        seed: int,
        side: SideInformation,
        work: Path | None = None,
    ) -> Self:
        residual = training_sample(vectors_NV, config.codebook_size, config.points_per_code, seed)
        codebooks = []
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(config.threads)
        try:
            for level in Bar(range(config.levels), desc="fit levels", unit=" level", disable=None):
                centroids_KV = _cluster(residual, config, seed, level)
                codebooks.append(centroids_KV)
                residual -= centroids_KV[faiss.knn(residual, centroids_KV, 1)[1][:, 0]]
        finally:
            faiss.omp_set_num_threads(threads)
        return cls(np.stack(codebooks), config.beam)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        levels, size, _ = self._codebooks_LKV.shape
        return (size,) * levels

    @property
    def width(self) -> int:
        return int(self._codebooks_LKV.shape[2])

    def encode(self, vectors_NV: np.ndarray, distances: int = DISTANCES) -> Encoded:
        """distances: computed at a time, at least those of one row."""
        check_width(vectors_NV, self.width)
        levels, size, _ = self._codebooks_LKV.shape
        codes_NL = np.empty((len(vectors_NV), levels), dtype=np.int64)
        rows = max(1, distances // (self._beam * size))
        search = _greedy if self._beam == 1 else partial(_beam_search, beam=self._beam)
        for start in Bar(range(0, len(vectors_NV), rows), desc="encode", unit_scale=rows, unit=" items", disable=None):
            part = slice(start, start + rows)
            codes_NL[part] = search(np.asarray(vectors_NV[part], np.float32), self._codebooks_LKV)
        return Encoded(codes_NL)

    def last_level_costs(self, vectors_NV: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        residual_NV = vectors_NV - self.decode(codes_NL[:, :-1])
        return squared_distances(residual_NV, self._codebooks_LKV[-1])

    def decode(self, codes_NL: np.ndarray, weights_NL: np.ndarray | None = None) -> np.ndarray:
        vectors_NV = np.zeros((len(codes_NL), self.width), dtype=np.float32)
        for codebook_KV, codes in zip(self._codebooks_LKV, codes_NL.T, strict=False):
            vectors_NV += codebook_KV[codes]
        return vectors_NV

    def arrays(self) -> dict[str, np.ndarray]:
        return {"codebooks": self._codebooks_LKV}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], config: ResidualKMeansConfig, seed: int) -> Self:
        return cls(arrays["codebooks"], config.beam)


def _cluster(residual_NV: np.ndarray, config: ResidualKMeansConfig, seed: int, level: int) -> np.ndarray:
    """float32 centroids [K, V] with the lowest squared error of all searches; of equal size if `balanced`."""
    size, rounds = config.codebook_size, config.iterations
    seeds = np.random.SeedSequence([seed, level]).generate_state(1 + config.restarts) >> 1  # C ints
    candidates = [growing_kmeans(residual_NV, size, rounds, config.dimension_steps, int(seeds[0]))]
    candidates += [plain_kmeans(residual_NV, size, rounds, int(start)) for start in seeds[1:]]
    best = min(candidates, key=lambda centroids_KV: faiss.knn(residual_NV, centroids_KV, 1)[0].sum(dtype=np.float64))
    return balanced_kmeans(residual_NV, best, rounds) if config.balanced else best


def _greedy(vectors_RV: np.ndarray, codebooks_LKV: np.ndarray) -> np.ndarray:
    """Codes [R, L]: the nearest code of every level. Same as a beam of 1, in fewer passes over memory."""
    residual_RV = vectors_RV.copy()
    codes_RL = np.empty((len(vectors_RV), len(codebooks_LKV)), dtype=np.int64)
    for level, codebook_KV in enumerate(codebooks_LKV):
        error_RK = residual_RV @ (-2 * codebook_KV.T)  # less |residual|^2, equal for all codes
        error_RK += np.square(codebook_KV).sum(axis=1)
        codes_RL[:, level] = error_RK.argmin(axis=1)
        residual_RV -= codebook_KV[codes_RL[:, level]]
    return codes_RL


def _beam_search(vectors_RV: np.ndarray, codebooks_LKV: np.ndarray, beam: int) -> np.ndarray:
    """Codes [R, L] of the best of `beam` partial SIDs per level, by squared error."""
    _, size, width = codebooks_LKV.shape
    rows = np.arange(len(vectors_RV))[:, None]
    residual_RWV = vectors_RV[:, None, :]
    codes_RWL = np.empty((len(vectors_RV), 1, 0), dtype=np.int64)
    for codebook_KV in codebooks_LKV:
        cross_RWK = (residual_RWV.reshape(-1, width) @ codebook_KV.T).reshape(len(vectors_RV), -1, size)
        error_RWK = np.square(codebook_KV).sum(axis=1) - 2 * cross_RWK
        error_RWK += np.square(residual_RWV).sum(axis=2)[:, :, None]  # differs only between partial SIDs
        best_RW = _smallest(error_RWK.reshape(len(vectors_RV), -1), beam)
        kept_RW, code_RW = np.divmod(best_RW, size)
        residual_RWV = residual_RWV[rows, kept_RW] - codebook_KV[code_RW]
        codes_RWL = np.concatenate([codes_RWL[rows, kept_RW], code_RW[:, :, None]], axis=2)
    return codes_RWL[:, 0]


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` smallest values of each row, in ascending order of value."""
    count = min(count, values.shape[1])
    some = np.argpartition(values, count - 1, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(values, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)


def training_sample(vectors_NV: np.ndarray, codebook_size: int, points_per_code: int, seed: int) -> np.ndarray:
    """A float32 copy of the training vectors: all, or a seeded sample of points_per_code * codebook_size.

    Raises ContractError for fewer items than codes; warns for fewer than FEW_POINTS items per code.
    """
    items = len(vectors_NV)
    if items < codebook_size:
        expected = f"at least {codebook_size} items for codebook_size {codebook_size}"
        raise ContractError("item vectors", expected, f"{items} items")
    if items < FEW_POINTS * codebook_size:
        advice = "centroids follow chance, a smaller codebook_size would be steadier"
        _log.warning(
            "%d items for %d codes per level, fewer than %d each: %s", items, codebook_size, FEW_POINTS, advice
        )
    most = points_per_code * codebook_size
    if items <= most:
        return np.array(vectors_NV, dtype=np.float32, order="C")
    chosen = np.sort(np.random.default_rng(seed).choice(items, most, replace=False))
    return np.ascontiguousarray(vectors_NV[chosen], dtype=np.float32)


def plain_kmeans(points_NV: np.ndarray, codebook_size: int, iterations: int, seed: int) -> np.ndarray:
    """float32 centroids [K, V]: Lloyd's algorithm on all points, from a k-means++ start."""
    learner = faiss.Clustering(points_NV.shape[1], codebook_size)
    _set(learner, iterations, len(points_NV), seed)
    learner.train(points_NV, faiss.IndexFlatL2(points_NV.shape[1]))
    return faiss.vector_to_array(learner.centroids).reshape(codebook_size, -1)


def growing_kmeans(points_NV: np.ndarray, codebook_size: int, iterations: int, steps: int, seed: int) -> np.ndarray:
    """float32 centroids [K, V]: k-means on one principal axis, then on more of them, in `steps` rounds.

    faiss finds no more principal axes than there are points. Fewer points than dimensions are therefore first rotated
    into the space that they span, where distances, and so clusters, are the same.
    """
    if len(points_NV) < points_NV.shape[1]:
        mean_V, axes_RV = _span(points_NV)
        spanned_NR = np.ascontiguousarray((points_NV - mean_V) @ axes_RV.T)
        return growing_kmeans(spanned_NR, codebook_size, iterations, steps, seed) @ axes_RV + mean_V
    learner = faiss.ProgressiveDimClustering(points_NV.shape[1], codebook_size)
    learner.progressive_dim_steps = steps
    _set(learner, iterations, len(points_NV), seed)
    factory = faiss.ProgressiveDimIndexFactory()
    learner.train(len(points_NV), faiss.swig_ptr(points_NV), factory)  # type: ignore[call-overload]  # stub forgets n
    return faiss.vector_to_array(learner.centroids).reshape(codebook_size, -1)


def _span(points_NV: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean [V] of the points, and orthonormal rows [R, V] that span their deviations from it; 1 <= R < N."""
    mean_V = points_NV.mean(axis=0, dtype=np.float64).astype(np.float32)
    _, lengths_R, axes_RV = np.linalg.svd(points_NV - mean_V, full_matrices=False)
    rank = int((lengths_R > lengths_R[0] * np.finfo(np.float32).eps * len(points_NV)).sum())
    return mean_V, axes_RV[: max(1, rank)]


def squared_distances(points_RV: np.ndarray, centroids_KV: np.ndarray) -> np.ndarray:
    """float32 [R, K] squared distances, up to rounding; never negative."""
    distances_RK = points_RV @ (-2 * centroids_KV.T)
    distances_RK += np.square(centroids_KV).sum(axis=1)
    distances_RK += np.square(points_RV).sum(axis=1)[:, None]
    return np.maximum(distances_RK, 0, out=distances_RK)


def _set(parameters: faiss.ClusteringParameters, iterations: int, items: int, seed: int) -> None:
    """faiss refills an empty cluster by splitting a large one; that needs no parameter."""
    parameters.niter, parameters.seed = iterations, seed
    parameters.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    parameters.min_points_per_centroid, parameters.max_points_per_centroid = 1, items  # sampled already


def balanced_kmeans(points_NV: np.ndarray, start_KV: np.ndarray, iterations: int) -> np.ndarray:
    """float32 centroids [K, V] of clusters of equal size (OneRec, arXiv 2502.18965). Deterministic.

    Each of `iterations` rounds, from `start_KV`, assigns all points (`balanced_assignment`) and moves centroids to the
    means of their N // K or N // K + 1 points. OneRec's own loop fills one cluster after the other, so that the last
    ones get the points that remain.
    """
    centroids_KV = np.asarray(start_KV, dtype=np.float32)
    prices_K = np.zeros(len(centroids_KV), dtype=np.float32)
    for _ in range(iterations):
        owner_N = balanced_assignment(points_NV, centroids_KV, prices_K)
        order = np.argsort(owner_N, kind="stable")
        starts_K = np.searchsorted(owner_N[order], np.arange(len(centroids_KV)))
        sums_KV = np.add.reduceat(points_NV[order], starts_K, axis=0, dtype=np.float64)
        centroids_KV = (sums_KV / np.bincount(owner_N)[:, None]).astype(np.float32)
    return centroids_KV


def balanced_assignment(points_NV: np.ndarray, centroids_KV: np.ndarray, prices_K: np.ndarray) -> np.ndarray:
    """int64 [N]: a cluster for every point, each cluster with N // K points or one more (the first N % K of them).

    An auction (Bertsekas, 1988): points bid for places in clusters, and prices of crowded clusters rise until every
    point has a place. The total squared distance is within N * SLACK * mean distance of the minimum. It needs no [N, K]
    matrix, and the prices of one round start the next; min-cost flow is exact but too slow for 100,000 points.

    prices_K: the prices to start from; overwritten by the final ones. Needs N >= K.
    """
    items, clusters = len(points_NV), len(centroids_KV)
    capacity_K = np.full(clusters, items // clusters)
    capacity_K[: items % clusters] += 1
    owner_N = np.full(items, -1, dtype=np.int64)
    bid_N = np.zeros(items, dtype=np.float32)
    step = _least_step(points_NV, centroids_KV)
    pending_P = np.arange(items)
    while len(pending_P):
        owner_N[pending_P], bid_N[pending_P] = _bids(points_NV, pending_P, centroids_KV, prices_K, step)
        pending_P = _award(owner_N, bid_N, prices_K, capacity_K, np.unique(owner_N[pending_P]))
    return owner_N


def _least_step(points_NV: np.ndarray, centroids_KV: np.ndarray) -> np.float32:
    sample_RV = points_NV[:: max(1, len(points_NV) // 1024)]
    mean = np.maximum(squared_distances(sample_RV, centroids_KV).min(axis=1), 0).mean()
    scale = np.square(sample_RV).sum(axis=1).mean()  # for points on their centroids, distances are rounding errors
    return np.float32(max(SLACK * mean, 1e-4 * scale, np.finfo(np.float32).tiny))


def _bids(
    points_NV: np.ndarray, pending_P: np.ndarray, centroids_KV: np.ndarray, prices_K: np.ndarray, step: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """For every pending point: its best cluster at these prices, and the price at which its second best is as good."""
    points, clusters = len(pending_P), len(centroids_KV)
    best_P, bid_P = np.zeros(points, dtype=np.int64), np.full(points, step)
    if clusters == 1:
        return best_P, bid_P
    rows = max(1, BLOCK // clusters)
    for start in range(0, points, rows):
        costs_RK = squared_distances(points_NV[pending_P[start : start + rows]], centroids_KV) + prices_K
        two_R2 = np.argpartition(costs_RK, 1, axis=1)[:, :2]
        cost_R2 = np.take_along_axis(costs_RK, two_R2, axis=1)
        best_P[start : start + rows] = two_R2[:, 0]
        bid_P[start : start + rows] = prices_K[two_R2[:, 0]] + (cost_R2[:, 1] - cost_R2[:, 0]) + step
    return best_P, bid_P


def _award(
    owner_N: np.ndarray, bid_N: np.ndarray, prices_K: np.ndarray, capacity_K: np.ndarray, touched: np.ndarray
) -> np.ndarray:
    """Each touched cluster keeps its highest bidders; its lowest bid becomes its price. Returns the losers."""
    is_touched_K = np.zeros(len(prices_K), dtype=bool)
    is_touched_K[touched] = True
    members = np.flatnonzero((owner_N >= 0) & is_touched_K[owner_N])
    members = members[np.lexsort((-bid_N[members], owner_N[members]))]
    owners = owner_N[members]
    rank = np.arange(len(members)) - np.searchsorted(owners, owners)
    last = rank == capacity_K[owners] - 1
    prices_K[owners[last]] = bid_N[members[last]]
    lost = members[rank >= capacity_K[owners]]
    owner_N[lost] = -1
    return np.sort(lost)
