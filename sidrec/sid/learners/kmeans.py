"""k-means by faiss, and the sample of items that it sees. Shared by the learners that cluster.

Shapes: N items, V vector width, K codes, R rows at a time.
"""

import logging

import faiss
import numpy as np

from sidrec.schema import ContractError

FEW_POINTS = 39  # training vectors per code under which faiss, too, calls centroids unreliable

_log = logging.getLogger(__name__)


def training_sample(vectors_NV: np.ndarray, codebook_size: int, points_per_code: int, seed: int) -> np.ndarray:
    """A float32 copy of the training vectors: all, or a seeded choice of points_per_code * codebook_size.

    Raises ContractError when there are fewer items than codes; warns when there are few.
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
    """float32 centroids [K, V]: Lloyd's algorithm from a k-means++ start, on all of the points."""
    learner = faiss.Clustering(points_NV.shape[1], codebook_size)
    _set(learner, iterations, len(points_NV), seed)
    learner.train(points_NV, faiss.IndexFlatL2(points_NV.shape[1]))
    return faiss.vector_to_array(learner.centroids).reshape(codebook_size, -1)


def growing_kmeans(points_NV: np.ndarray, codebook_size: int, iterations: int, steps: int, seed: int) -> np.ndarray:
    """float32 centroids [K, V]: k-means on one principal axis, gone on with more of them in `steps` rounds."""
    learner = faiss.ProgressiveDimClustering(points_NV.shape[1], codebook_size)
    learner.progressive_dim_steps = steps
    _set(learner, iterations, len(points_NV), seed)
    factory = faiss.ProgressiveDimIndexFactory()
    learner.train(len(points_NV), faiss.swig_ptr(points_NV), factory)  # type: ignore[call-overload]  # stub forgets n
    return faiss.vector_to_array(learner.centroids).reshape(codebook_size, -1)


def squared_distances(points_RV: np.ndarray, centroids_KV: np.ndarray) -> np.ndarray:
    """float32 [R, K], up to rounding; never negative."""
    distances_RK = points_RV @ (-2 * centroids_KV.T)
    distances_RK += np.square(centroids_KV).sum(axis=1)
    distances_RK += np.square(points_RV).sum(axis=1)[:, None]
    return np.maximum(distances_RK, 0, out=distances_RK)


def _set(parameters: faiss.ClusteringParameters, iterations: int, items: int, seed: int) -> None:
    """faiss refills an empty cluster by splitting a large one, so there is nothing to set for that."""
    parameters.niter, parameters.seed = iterations, seed
    parameters.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    parameters.min_points_per_centroid, parameters.max_points_per_centroid = 1, items  # sampled already
