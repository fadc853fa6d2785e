"""Balanced k-means: clusters of equal size (OneRec, arXiv 2502.18965, asks for N / K items per cluster).

Every round assigns all points at nearly the least total squared distance under exact capacities, then moves centroids
to the means. The assignment is an auction (Bertsekas 1988): points bid for places in clusters, and the prices of
crowded clusters rise until everybody has a place. OneRec's own loop fills one cluster after the other, so that the
last ones get what is left; min-cost flow is exact but too slow for 100k points. An auction is close to the optimum
(SLACK), needs no [N, K] matrix in memory, and the prices of one round are a warm start for the next.

Shapes: N points, V width, K clusters, P points without a place, R rows at a time.
"""

import numpy as np

from sidrec.sid.learners.kmeans import squared_distances

BLOCK = 1 << 22  # costs held at a time
SLACK = 0.05  # least step of a bid, as a share of the mean squared distance from a point to its centroid


def balanced_kmeans(points_NV: np.ndarray, start_KV: np.ndarray, iterations: int) -> np.ndarray:
    """float32 centroids [K, V], each the mean of N // K or N // K + 1 points, after so many rounds from `start_KV`.

    A function of its arguments: nothing is drawn. Which points a centroid is the mean of: `balanced_assignment`.
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

    The total squared distance is within N * SLACK * mean distance of the least possible.
    prices_K: prices to begin with; holds the final ones afterwards. Needs N >= K.
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
    scale = np.square(sample_RV).sum(axis=1).mean()  # where centroids hit their points, distances are rounding errors
    return np.float32(max(SLACK * mean, 1e-4 * scale, np.finfo(np.float32).tiny))


def _bids(
    points_NV: np.ndarray, pending_P: np.ndarray, centroids_KV: np.ndarray, prices_K: np.ndarray, step: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """For every pending point the best cluster at these prices, and what it would pay before the second is as good."""
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
    """Each touched cluster keeps its highest bidders, and its lowest bid becomes the price. Returns who lost."""
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
