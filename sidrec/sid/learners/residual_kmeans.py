"""Residual k-means: cluster the vectors, subtract the nearest centroid, cluster what remains (RQ-KMeans; QARM, OneRec).

Each level keeps the better of two searches (`benchmarks/residual_kmeans_choice.md`). On real items it is k-means that
starts on the first principal axis and goes on with more of them (faiss ProgressiveDimClustering): less error and evener
codes. Where a few clusters lie far apart, one axis cannot tell them apart, and plain k-means with k-means++ wins.

`balanced` evens the winner out: clusters of equal size while fitting, codebooks are their means. Encoding takes the
nearest code all the same, of catalog items too, so that a row's codes depend on that row alone: usage gets more even,
not equal.

Shapes: N items, V vector width, L levels, K codes per level, R rows at a time, W partial SIDs kept (beam).
"""

from functools import partial
from pathlib import Path
from typing import Self

import faiss
import numpy as np
from tqdm import tqdm, trange

from sidrec.config.learners import ResidualKMeansConfig
from sidrec.sid.learners.balanced_kmeans import balanced_kmeans
from sidrec.sid.learners.kmeans import growing_kmeans, plain_kmeans, squared_distances, training_sample
from sidrec.sid.tokenizer import Encoded, SideInformation, Tokenizer, check_width

DISTANCES = 1 << 18  # held at a time while encoding, so few that they stay in the cache


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
        residual = training_sample(vectors_NV, config.codebook_size, config.points_per_code, seed)
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
        search = _greedy if self._beam == 1 else partial(_beam_search, beam=self._beam)
        for start in trange(0, len(vectors_NV), rows, desc="encode", unit_scale=rows, unit=" items", disable=None):
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
    """float32 centroids [K, V], of all starts those with the lowest squared error; evened out if `balanced`."""
    size, rounds = config.codebook_size, config.iterations
    seeds = np.random.SeedSequence([seed, level]).generate_state(1 + config.restarts) >> 1  # C ints
    candidates = [growing_kmeans(residual_NV, size, rounds, config.dimension_steps, int(seeds[0]))]
    candidates += [plain_kmeans(residual_NV, size, rounds, int(start)) for start in seeds[1:]]
    best = min(candidates, key=lambda centroids_KV: faiss.knn(residual_NV, centroids_KV, 1)[0].sum(dtype=np.float64))
    return balanced_kmeans(residual_NV, best, rounds) if config.balanced else best


def _greedy(vectors_RV: np.ndarray, codebooks_LKV: np.ndarray) -> np.ndarray:
    """Codes [R, L]: the nearest code of every level. A beam of 1, in fewer passes over memory."""
    residual_RV = vectors_RV.copy()
    codes_RL = np.empty((len(vectors_RV), len(codebooks_LKV)), dtype=np.int64)
    for level, codebook_KV in enumerate(codebooks_LKV):
        error_RK = residual_RV @ (-2 * codebook_KV.T)  # less |residual|^2, the same for all codes
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
        error_RWK += np.square(residual_RWV).sum(axis=2)[:, :, None]  # matters only between beams
        best_RW = _smallest(error_RWK.reshape(len(vectors_RV), -1), beam)
        kept_RW, code_RW = np.divmod(best_RW, size)
        residual_RWV = residual_RWV[rows, kept_RW] - codebook_KV[code_RW]
        codes_RWL = np.concatenate([codes_RWL[rows, kept_RW], code_RW[:, :, None]], axis=2)
    return codes_RWL[:, 0]


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` smallest values of each row, smallest first."""
    count = min(count, values.shape[1])
    some = np.argpartition(values, count - 1, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(values, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)
