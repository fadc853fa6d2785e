"""Residual k-means: cluster the vectors, subtract the nearest centroid, cluster what remains (RQ-KMeans; QARM, OneRec).

Each level keeps the better of two searches (`benchmarks/residual_kmeans_choice.md`). On real items it is k-means that
starts on the first principal axis and goes on with more of them (faiss ProgressiveDimClustering): less error and evener
codes. Where a few clusters lie far apart, one axis cannot tell them apart, and plain k-means with k-means++ wins.

Shapes: N items, V vector width, L levels, K codes per level, R rows at a time, W partial SIDs kept (beam).
"""

import logging
from pathlib import Path
from typing import Self

import faiss
import numpy as np
from tqdm import tqdm, trange

from sidrec.config.learners import ResidualKMeansConfig
from sidrec.schema import ContractError
from sidrec.sid.tokenizer import Encoded, SideInformation, Tokenizer, check_width

FEW_POINTS = 39  # training vectors per code under which faiss, too, calls centroids unreliable
DISTANCES = 1 << 22  # held at a time while encoding

_log = logging.getLogger(__name__)


class ResidualKMeans(Tokenizer):
    """Codebooks [L, K, V]; a SID stands for the sum of its codes' centroids."""

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
        residual = _sample(vectors_NV, config, seed)
        codebooks = []
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(config.threads)
        try:
            for level in tqdm(range(config.levels), desc="fit levels", unit=" level", disable=None):
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

    def encode(self, vectors_NV: np.ndarray) -> Encoded:
        check_width(vectors_NV, self.width)
        levels, size, _ = self._codebooks_LKV.shape
        codes_NL = np.empty((len(vectors_NV), levels), dtype=np.int64)
        rows = max(1, DISTANCES // (self._beam * size))
        for start in trange(0, len(vectors_NV), rows, desc="encode", unit_scale=rows, unit=" items", disable=None):
            part = slice(start, start + rows)
            codes_NL[part] = _beam_search(np.asarray(vectors_NV[part], np.float32), self._codebooks_LKV, self._beam)
        return Encoded(codes_NL)

    def decode(self, codes_NL: np.ndarray) -> np.ndarray:
        vectors_NV = np.zeros((len(codes_NL), self.width), dtype=np.float32)
        for codebook_KV, codes in zip(self._codebooks_LKV, codes_NL.T, strict=True):
            vectors_NV += codebook_KV[codes]
        return vectors_NV

    def arrays(self) -> dict[str, np.ndarray]:
        return {"codebooks": self._codebooks_LKV}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], config: ResidualKMeansConfig, seed: int) -> Self:
        return cls(arrays["codebooks"], config.beam)


def _sample(vectors_NV: np.ndarray, config: ResidualKMeansConfig, seed: int) -> np.ndarray:
    """A float32 copy of the training vectors, all or a seeded choice."""
    items, size = len(vectors_NV), config.codebook_size
    if items < size:
        raise ContractError("item vectors", f"at least {size} items for codebook_size {size}", f"{items} items")
    if items < FEW_POINTS * size:
        advice = "centroids follow chance, a smaller codebook_size would be steadier"
        _log.warning("%d items for %d codes per level, fewer than %d each: %s", items, size, FEW_POINTS, advice)
    most = config.points_per_code * size
    if items <= most:
        return np.array(vectors_NV, dtype=np.float32, order="C")
    chosen = np.sort(np.random.default_rng(seed).choice(items, most, replace=False))
    return np.ascontiguousarray(vectors_NV[chosen], dtype=np.float32)


def _cluster(residual_NV: np.ndarray, config: ResidualKMeansConfig, seed: int, level: int) -> np.ndarray:
    """float32 centroids [K, V], of all starts those with the lowest squared error."""
    seeds = np.random.SeedSequence([seed, level]).generate_state(1 + config.restarts) >> 1  # C ints
    candidates = [_growing_kmeans(residual_NV, config, int(seeds[0]))]
    candidates += [_plain_kmeans(residual_NV, config, int(start)) for start in seeds[1:]]
    return min(candidates, key=lambda centroids_KV: faiss.knn(residual_NV, centroids_KV, 1)[0].sum(dtype=np.float64))


def _growing_kmeans(residual_NV: np.ndarray, config: ResidualKMeansConfig, seed: int) -> np.ndarray:
    learner = faiss.ProgressiveDimClustering(residual_NV.shape[1], config.codebook_size)
    learner.progressive_dim_steps = config.dimension_steps
    _set(learner, config, len(residual_NV), seed)
    factory = faiss.ProgressiveDimIndexFactory()
    learner.train(len(residual_NV), faiss.swig_ptr(residual_NV), factory)  # type: ignore[call-overload]  # stub forgets n
    return faiss.vector_to_array(learner.centroids).reshape(config.codebook_size, -1)


def _plain_kmeans(residual_NV: np.ndarray, config: ResidualKMeansConfig, seed: int) -> np.ndarray:
    learner = faiss.Clustering(residual_NV.shape[1], config.codebook_size)
    _set(learner, config, len(residual_NV), seed)
    learner.train(residual_NV, faiss.IndexFlatL2(residual_NV.shape[1]))
    return faiss.vector_to_array(learner.centroids).reshape(config.codebook_size, -1)


def _set(parameters: faiss.ClusteringParameters, config: ResidualKMeansConfig, items: int, seed: int) -> None:
    """faiss refills an empty cluster by splitting a large one, so there is nothing to set for that."""
    parameters.niter, parameters.seed = config.iterations, seed
    parameters.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    parameters.min_points_per_centroid, parameters.max_points_per_centroid = 1, items  # sampled already


def _beam_search(vectors_RV: np.ndarray, codebooks_LKV: np.ndarray, beam: int) -> np.ndarray:
    """Codes [R, L] of the best of `beam` partial SIDs per level, by squared error; beam 1 takes the nearest code."""
    _, size, width = codebooks_LKV.shape
    rows = np.arange(len(vectors_RV))[:, None]
    residual_RWV = vectors_RV[:, None, :]
    codes_RWL = np.empty((len(vectors_RV), 1, 0), dtype=np.int64)
    for codebook_KV in codebooks_LKV:
        cross_RWK = (residual_RWV.reshape(-1, width) @ codebook_KV.T).reshape(len(vectors_RV), -1, size)
        error_RWK = np.square(codebook_KV).sum(axis=1) - 2 * cross_RWK
        error_RWK += np.square(residual_RWV).sum(axis=2)[:, :, None]  # matters only between beams
        best_RW = _smallest(error_RWK.reshape(len(vectors_RV), -1), beam)
        kept_RW, code_RW = np.divmod(best_RW, size)
        residual_RWV = residual_RWV[rows, kept_RW] - codebook_KV[code_RW]
        codes_RWL = np.concatenate([codes_RWL[rows, kept_RW], code_RW[:, :, None]], axis=2)
    return codes_RWL[:, 0]


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` smallest values of each row, smallest first."""
    if count == 1:
        return values.argmin(axis=1)[:, None]
    count = min(count, values.shape[1])
    some = np.argpartition(values, count - 1, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(values, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)
