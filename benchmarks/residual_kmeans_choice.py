"""Which residual k-means of faiss to build on: error, balance and collisions of several, on given vectors.

    OMP_NUM_THREADS=1 python benchmarks/residual_kmeans_choice.py VECTORS.npy

Vectors are scaled to unit length; K=256, L=3; all vectors train (at most 256 per code); seeds 0, 1, 2. Codes of every
contender come from faiss's beam search over its codebooks. Prints one markdown row per contender and seed.
"""

import sys
import time
from collections.abc import Callable

import faiss
import numpy as np

from sidrec.config.learners import ResidualKMeansConfig
from sidrec.sid.learners.kmeans import ResidualKMeans
from sidrec.sid.quality import code_quality
from sidrec.sid.tokenizer import SideInformation

K, L, ITERATIONS, SEEDS = 256, 3, 25, (0, 1, 2)
PLUS_PLUS = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
Fit = Callable[[np.ndarray, int], np.ndarray]


def level_by_level(cluster: Fit) -> Fit:
    """Codebooks [L, K, V]: cluster, subtract the nearest centroid, repeat."""

    def fit(vectors: np.ndarray, seed: int) -> np.ndarray:
        residual, codebooks = vectors.copy(), []
        for level in range(L):
            centroids = cluster(residual, seed * L + level)
            codebooks.append(centroids)
            residual -= centroids[faiss.knn(residual, centroids, 1)[1][:, 0]]
        return np.stack(codebooks)

    return fit


def kmeans(**settings: int) -> Fit:
    def cluster(residual: np.ndarray, seed: int) -> np.ndarray:
        learner = faiss.Kmeans(residual.shape[1], K, niter=ITERATIONS, seed=seed, min_points_per_centroid=1, **settings)
        learner.train(residual)
        return np.asarray(learner.centroids)

    return level_by_level(cluster)


def progressive(start: int = faiss.ClusteringInitMethod_RANDOM) -> Fit:
    """K-means on the first principal axes, then on more and more of them (faiss ProgressiveDimClustering)."""

    def cluster(residual: np.ndarray, seed: int) -> np.ndarray:
        learner = faiss.ProgressiveDimClustering(residual.shape[1], K)
        learner.niter, learner.progressive_dim_steps = 10, 10
        learner.seed, learner.min_points_per_centroid, learner.init_method = seed, 1, start
        factory = faiss.ProgressiveDimIndexFactory()
        learner.train(len(residual), faiss.swig_ptr(residual), factory)  # type: ignore[call-overload]  # stub forgets n
        return faiss.vector_to_array(learner.centroids).reshape(K, -1)

    return level_by_level(cluster)


def residual_quantizer(beam: int) -> Fit:
    def fit(vectors: np.ndarray, seed: int) -> np.ndarray:
        learner = faiss.ResidualQuantizer(vectors.shape[1], L, int(np.log2(K)))
        learner.max_beam_size, learner.cp.seed = beam, seed
        learner.train(vectors)
        return faiss.vector_to_array(learner.codebooks).reshape(L, K, -1)

    return fit


def sidrec_default(vectors: np.ndarray, seed: int) -> np.ndarray:
    config = ResidualKMeansConfig(levels=L, codebook_size=K)
    return ResidualKMeans.fit(vectors, config, seed, SideInformation()).arrays()["codebooks"]


def encode(vectors: np.ndarray, codebooks: np.ndarray, beam: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, L] and residuals, by faiss's own beam search."""
    quantizer = faiss.ResidualQuantizer(vectors.shape[1], L, int(np.log2(K)))
    faiss.copy_array_to_vector(codebooks.ravel(), quantizer.codebooks)
    quantizer.max_beam_size, quantizer.is_trained = beam, True
    codes = quantizer.compute_codes(vectors).astype(np.int64)
    return codes, vectors - sum(codebooks[level][codes[:, level]] for level in range(L))


CONTENDERS: dict[str, tuple[Fit, int]] = {
    "Kmeans per level": (kmeans(), 1),
    "Kmeans per level, k-means++ start": (kmeans(init_method=PLUS_PLUS), 1),
    "Kmeans per level, encode beam 5": (kmeans(), 5),
    "ProgressiveDimClustering per level": (progressive(), 1),
    "ProgressiveDimClustering per level, k-means++ start": (progressive(PLUS_PLUS), 1),
    "the same, encode beam 5": (progressive(PLUS_PLUS), 5),
    "sidrec's default: per level the best of one growing and two plain": (sidrec_default, 1),
    "ResidualQuantizer beam 1": (residual_quantizer(1), 1),
    "ResidualQuantizer beam 5 (faiss's default)": (residual_quantizer(5), 5),
}


def main() -> None:
    vectors = np.load(sys.argv[1]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    variance = float(np.square(vectors - vectors.mean(axis=0)).sum(axis=1).mean())
    print(f"{len(vectors)} x {vectors.shape[1]}, faiss {faiss.__version__}, {faiss.omp_get_max_threads()} thread(s)\n")
    print("| contender | seed | fit CPU s | err/var | perplexity L1/L2/L3 | unique SIDs | collision rate | collided |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (fit, beam) in CONTENDERS.items():
        for seed in SEEDS:
            start = time.process_time()
            codebooks = fit(vectors, seed)
            seconds = time.process_time() - start
            codes, residual = encode(vectors, codebooks, beam)
            quality = code_quality(codes, (K,) * L)
            error = float(np.square(residual).sum(axis=1).mean()) / variance
            levels = "/".join(f"{value:.0f}" for value in quality.perplexity)
            print(
                f"| {name} | {seed} | {seconds:.1f} | {error:.4f} | {levels} | {quality.unique_prefixes[-1]} "
                f"| {quality.collision_rate:.4f} | {quality.collided_item_rate:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
