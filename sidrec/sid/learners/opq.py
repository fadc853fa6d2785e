"""Optimised product quantisation: one codebook per subspace of rotated principal components.

Shapes: N items, V vector width, C components, L subspaces (levels), S = C / L width of one, K codes, R rows at a time.
"""

from pathlib import Path
from typing import Self

import faiss
import numpy as np

from sidrec.config.learners import OpqConfig
from sidrec.io.progress import Bar
from sidrec.schema import ContractError
from sidrec.sid.learners.kmeans import plain_kmeans, squared_distances, training_sample
from sidrec.sid.tokenizer import Encoded, SideInformation, Tokenizer, check_width

MOST_COMPONENTS = 128  # default of RPG
ROWS = 4096  # rows of an encoded block; all blocks have this shape, as the last bits of a matrix product depend on it


class Opq(Tokenizer):
    """Optimised product quantisation (Ge et al. 2013; as semantic ids in RPG, KDD 2025). [N, V] -> codes [N, L].

    y = axes (x - mean), code_l = argmin_k |y_l - c_lk|^2 on part l of y. x' = axes^T [c_l,code_l] + mean

    Levels have no order, unlike those of residual learners. Vectors are centred, projected on their first principal
    components, and rotated to lower the quantisation error of equal parts. faiss learns the rotation with the power of
    two nearest to K; the final codebooks come from plain k-means with exactly K codes.

    mean_V, axes_CV (orthonormal rows: principal axes, rotated), codebooks_LKS: float32.
    """

    def __init__(self, mean_V: np.ndarray, axes_CV: np.ndarray, codebooks_LKS: np.ndarray) -> None:
        self._mean_V = mean_V
        self._axes_CV = axes_CV
        self._codebooks_LKS = codebooks_LKS

    @classmethod
    def fit(
        cls,
        vectors_NV: np.ndarray,
        config: OpqConfig,
        seed: int,
        side: SideInformation,
        work: Path | None = None,
    ) -> Self:
        components = _components(len(vectors_NV), vectors_NV.shape[1], config)
        sample_NV = training_sample(vectors_NV, config.codebook_size, config.points_per_code, seed)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(config.threads)
        try:
            mean_V = sample_NV.mean(axis=0, dtype=np.float64).astype(np.float32)
            sample_NV -= mean_V
            axes_CV = _principal_axes(sample_NV, components)
            axes_CV = _rotation(sample_NV @ axes_CV.T, config, seed) @ axes_CV
            parts = np.split(sample_NV @ axes_CV.T, config.levels, axis=1)
            codebooks = []
            for level, part_NS in enumerate(Bar(parts, desc="fit levels", unit=" level", disable=None)):
                start = int(np.random.SeedSequence([seed, level]).generate_state(1)[0]) >> 1  # a C int
                points_NS = np.ascontiguousarray(part_NS)
                codebooks.append(plain_kmeans(points_NS, config.codebook_size, config.iterations, start))
        finally:
            faiss.omp_set_num_threads(threads)
        return cls(mean_V, axes_CV, np.stack(codebooks))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        levels, size, _ = self._codebooks_LKS.shape
        return (size,) * levels

    @property
    def width(self) -> int:
        return len(self._mean_V)

    def encode(self, vectors_NV: np.ndarray) -> Encoded:
        check_width(vectors_NV, self.width)
        codes_NL = np.empty((len(vectors_NV), len(self._codebooks_LKS)), dtype=np.int64)
        rows_RV = np.zeros((ROWS, self.width), dtype=np.float32)
        for start in Bar(range(0, len(vectors_NV), ROWS), desc="encode", unit_scale=ROWS, unit=" items", disable=None):
            part = vectors_NV[start : start + ROWS]
            rows_RV[: len(part)] = part
            parts_RC = (rows_RV - self._mean_V) @ self._axes_CV.T
            for level, codebook_KS in enumerate(self._codebooks_LKS):
                distances_RK = squared_distances(self._part(parts_RC, level), codebook_KS)
                codes_NL[start : start + ROWS, level] = distances_RK.argmin(axis=1)[: len(part)]
        return Encoded(codes_NL)

    def decode(self, codes_NL: np.ndarray, weights_NL: np.ndarray | None = None) -> np.ndarray:
        parts = [codebook_KS[codes] for codebook_KS, codes in zip(self._codebooks_LKS, codes_NL.T, strict=True)]
        return np.concatenate(parts, axis=1) @ self._axes_CV + self._mean_V

    def last_level_costs(self, vectors_NV: np.ndarray, codes_NL: np.ndarray) -> np.ndarray:
        parts_NC = (vectors_NV - self._mean_V) @ self._axes_CV.T
        return squared_distances(self._part(parts_NC, len(self._codebooks_LKS) - 1), self._codebooks_LKS[-1])

    def _part(self, parts_RC: np.ndarray, level: int) -> np.ndarray:
        width = self._codebooks_LKS.shape[2]
        return np.ascontiguousarray(parts_RC[:, level * width : (level + 1) * width])

    def arrays(self) -> dict[str, np.ndarray]:
        return {"mean": self._mean_V, "axes": self._axes_CV, "codebooks": self._codebooks_LKS}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], config: OpqConfig, seed: int) -> Self:
        return cls(arrays["mean"], arrays["axes"], arrays["codebooks"])


def _components(items: int, width: int, config: OpqConfig) -> int:
    """C. Raises ContractError when the vectors have fewer dimensions or items, or L does not divide them."""
    most = min(width, items)
    components = config.components or min(MOST_COMPONENTS, most) // config.levels * config.levels
    if not components:
        expected = f"at least {config.levels} dimensions and items, one per level of opq"
        raise ContractError("item vectors", expected, f"{items} items of width {width}")
    if components > most:
        expected = f"at least {components} dimensions and items for components {components}"
        raise ContractError("item vectors", expected, f"{items} items of width {width}")
    return components


def _principal_axes(centred_NV: np.ndarray, components: int) -> np.ndarray:
    """Orthonormal rows [C, V]: the directions of greatest variance, greatest first."""
    learner = faiss.PCAMatrix(centred_NV.shape[1], components)
    learner.max_points_per_d = len(centred_NV)  # sampled already
    learner.train(centred_NV)
    return faiss.vector_to_array(learner.A).reshape(components, -1)


def _rotation(points_NC: np.ndarray, config: OpqConfig, seed: int) -> np.ndarray:
    """Orthogonal [C, C] rotation for a low quantisation error of the subspaces (faiss OPQMatrix)."""
    components = points_NC.shape[1]
    bits = min(round(np.log2(config.codebook_size)), int(np.log2(len(points_NC))))
    quantizer = faiss.ProductQuantizer(components, config.levels, max(1, bits))
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed & 0x7FFFFFFF, 1
    learner = faiss.OPQMatrix(components, config.levels)
    learner.pq = quantizer
    learner.train(np.ascontiguousarray(points_NC))
    return faiss.vector_to_array(learner.A).reshape(components, components)
