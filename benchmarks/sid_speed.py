"""Cost of learning codes, compared to the same work by hand with well-known libraries.

    OMP_NUM_THREADS=1 python -m benchmarks.sid_speed --write

* RQ-KMeans, fit and encode, against faiss called by hand: level by level the same searches (one growing k-means, two
  plain ones), the better kept, its centroids subtracted; and `faiss.knn` level by level for the codes.
* A training step of RQ-VAE against the same encoder, decoder and AdamW with `ResidualVQ` of vector-quantize-pytorch:
  codebooks learned by gradients, which is our own work, and by moving averages, which is that library's default.

Everything alternates in one process on one pinned core with one thread; a ratio is of CPU seconds of the same round.

Shapes: N items, V width, K codes, B items of a batch.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from vector_quantize_pytorch import ResidualVQ

from benchmarks.step_time import spread
from benchmarks.tables import markdown_table
from sidrec.config.learners import ResidualKMeansConfig, RqVaeConfig
from sidrec.io.files import write_json, write_text
from sidrec.sid.learners.kmeans import ResidualKMeans
from sidrec.sid.networks.network import ItemBatch, mlp
from sidrec.sid.networks.rqvae import RqVae
from sidrec.sid.tokenizer import SideInformation
from sidrec.study.results import conditions

ITEMS, WIDTH, BATCH = 100_000, 384, 1024
KMEANS = ResidualKMeansConfig(iterations=3)  # of 10 by default: what a library cannot save weighs more, not less
RQVAE = RqVaeConfig()
STEPS = 10  # per turn of a training
RESULT = Path(__file__).with_suffix(".json")

Turn = Callable[[], object]
Seconds = dict[str, list[float]]


def cpu_seconds(turns: Mapping[str, Turn], rounds: int) -> Seconds:
    """CPU seconds of every turn and round; who begins changes from round to round."""
    names = list(turns)
    seconds: Seconds = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.process_time()
            turns[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def clustered_vectors(items: int, width: int) -> np.ndarray:
    """float32 unit vectors [N, V] around a thousand centres: k-means on them has something to find."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(1000, width)).astype(np.float32)
    vectors = centres[random.integers(1000, size=items)] + random.normal(size=(items, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def faiss_fit(vectors_NV: np.ndarray, config: ResidualKMeansConfig) -> list[np.ndarray]:
    """Codebooks [K, V] of every level, as somebody who knows faiss would get them: the work of ResidualKMeans."""
    most = config.points_per_code * config.codebook_size
    chosen = np.random.default_rng(0).choice(len(vectors_NV), min(most, len(vectors_NV)), replace=False)
    residual, codebooks = vectors_NV[chosen], []
    for level in range(config.levels):
        candidates = [_faiss_growing(residual, config, level)]
        candidates += [_faiss_plain(residual, config, level * 10 + restart) for restart in range(config.restarts)]
        found = [faiss.knn(residual, centroids_KV, 1) for centroids_KV in candidates]
        best = min(range(len(found)), key=lambda one: found[one][0].sum())
        residual = residual - candidates[best][found[best][1][:, 0]]
        codebooks.append(candidates[best])
    return codebooks


def _faiss_plain(points: np.ndarray, config: ResidualKMeansConfig, seed: int) -> np.ndarray:
    learner = faiss.Kmeans(
        points.shape[1],
        config.codebook_size,
        niter=config.iterations,
        seed=seed,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        max_points_per_centroid=len(points),
    )
    learner.train(points)
    return np.asarray(learner.centroids)


def _faiss_growing(points: np.ndarray, config: ResidualKMeansConfig, seed: int) -> np.ndarray:
    learner = faiss.ProgressiveDimClustering(points.shape[1], config.codebook_size)
    learner.niter, learner.progressive_dim_steps, learner.seed = config.iterations, config.dimension_steps, seed
    learner.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    learner.max_points_per_centroid = len(points)
    factory = faiss.ProgressiveDimIndexFactory()
    learner.train(len(points), faiss.swig_ptr(points), factory)  # type: ignore[call-overload]  # stub forgets n
    return faiss.vector_to_array(learner.centroids).reshape(config.codebook_size, -1)


def faiss_encode(vectors_NV: np.ndarray, codebooks: list[np.ndarray]) -> np.ndarray:
    """Codes [N, L] by exact search, level by level."""
    residual, codes = vectors_NV.copy(), []
    for centroids_KV in codebooks:
        codes.append(faiss.knn(residual, centroids_KV, 1)[1][:, 0])
        residual -= centroids_KV[codes[-1]]
    return np.stack(codes, axis=1)


def kmeans_turns(vectors_NV: np.ndarray) -> tuple[dict[str, Turn], dict[str, Turn]]:
    """Of the fit and of the encoder, ours first. Raises AssertionError when the encoders disagree on codes."""
    fitted = ResidualKMeans.fit(vectors_NV[:20_000], KMEANS, 0, SideInformation())
    codebooks = list(fitted.arrays()["codebooks"])
    agreement = (fitted.encode(vectors_NV).codes_NL == faiss_encode(vectors_NV, codebooks)).mean()
    assert agreement > 0.999, f"expected the same codes but for rounding, got {agreement:.4f} equal"
    fits: dict[str, Turn] = {
        "sidrec": lambda: ResidualKMeans.fit(vectors_NV, KMEANS, 0, SideInformation()),
        "faiss by hand": lambda: faiss_fit(vectors_NV, KMEANS),
    }
    encodes: dict[str, Turn] = {
        "sidrec": lambda: fitted.encode(vectors_NV),
        "faiss by hand": lambda: faiss_encode(vectors_NV, codebooks),
    }
    return fits, encodes


class WithResidualVq(nn.Module):
    """RQ-VAE's step with another library's quantiser: the loss of a batch."""

    def __init__(self, config: RqVaeConfig, width: int, **quantizer: Any) -> None:
        super().__init__()
        self.encoder = mlp((width, *config.hidden, config.width))
        self.decoder = mlp((config.width, *reversed(config.hidden), width))
        self.quantizer = ResidualVQ(
            dim=config.width, num_quantizers=config.levels, codebook_size=config.codebook_size, **quantizer
        )

    def forward(self, vectors_BV: Tensor) -> Tensor:
        quantized_BD, _, commitments_L = self.quantizer(self.encoder(vectors_BV))
        error = functional.mse_loss(self.decoder(quantized_BD), vectors_BV, reduction="sum") / len(vectors_BV)
        return error + commitments_L.sum()


class OwnRqVae(nn.Module):
    """The loss of a batch, as the training sums it."""

    def __init__(self, config: RqVaeConfig, width: int) -> None:
        super().__init__()
        self.network = RqVae(config, (("text", width),))

    def forward(self, vectors_BV: Tensor) -> Tensor:
        coded = self.network(ItemBatch(torch.arange(len(vectors_BV)), vectors_BV))
        return torch.stack(list(coded.terms.values())).sum()


def step_models() -> dict[str, nn.Module]:
    """What a step trains, ours first; each gives the loss of a batch."""
    torch.manual_seed(0)
    by_gradients = {"learnable_codebook": True, "ema_update": False, "commitment_weight": RQVAE.commitment}
    return {
        "sidrec": OwnRqVae(RQVAE, WIDTH),
        "ResidualVQ, by gradients": WithResidualVq(RQVAE, WIDTH, **by_gradients),
        "ResidualVQ, by moving averages": WithResidualVq(RQVAE, WIDTH, commitment_weight=RQVAE.commitment),
    }


def training(model: nn.Module, batches: tuple[Tensor, ...]) -> Turn:
    """A turn: one step of AdamW on each of the batches."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)

    def turn() -> None:
        for vectors_BV in batches:
            optimizer.zero_grad()
            model(vectors_BV).backward()
            optimizer.step()

    return turn


def summary(seconds: Seconds, units: int) -> dict[str, dict[str, Any]]:
    """Per contender: CPU milliseconds per unit, and ours divided by it, as [median, least, most] over rounds."""
    ours = seconds["sidrec"]
    return {
        name: {
            "cpu_ms": [round(1000 * value / units, 3) for value in spread(own)],
            "ratio_of_sidrec": [round(v, 3) for v in spread([a / b for a, b in zip(ours, own, strict=True)])],
        }
        for name, own in seconds.items()
    }


def table(result: Mapping[str, Mapping[str, Any]]) -> str:
    """All parts as one markdown table."""
    rows = [
        [part, name, *(f"{line[key][0]:,.2f} [{line[key][1]:,.2f}-{line[key][2]:,.2f}]" for key in line)]
        for part, lines in result.items()
        for name, line in lines.items()
    ]
    header = ["what", "by", "CPU ms, median [least-most]", "sidrec / this, CPU, median [least-most]"]
    return markdown_table(header, rows)


def report(result: Mapping[str, Mapping[str, Any]], facts: Mapping[str, object]) -> str:
    """The table and its conditions, as markdown."""
    work = (
        f"Encoder {WIDTH}-{'-'.join(map(str, (*RQVAE.hidden, RQVAE.width)))}, {RQVAE.levels} x {RQVAE.codebook_size} "
    )
    work += f"codes; k-means with {KMEANS.iterations} iterations. One thread, a machine shared with other work."
    conditions_text = "\n".join(f"* {name}: {value}" for name, value in facts.items())
    return f"# What learning codes costs\n\n{table(result)}\n\n{work}\n\n{conditions_text}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="of encoding and training; fits get a quarter of them")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--write", action="store_true", help="sid_speed.json and sid_speed.md beside this file")
    flags = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    facts = conditions() | {"items": flags.items, "width": WIDTH, "rounds": flags.rounds, "steps_per_turn": STEPS}
    vectors_NV = clustered_vectors(flags.items, WIDTH)
    fits, encodes = kmeans_turns(vectors_NV)
    batches = tuple(torch.from_numpy(vectors_NV[: STEPS * BATCH]).view(STEPS, BATCH, -1))
    steps = {name: training(model, batches) for name, model in step_models().items()}
    cpu_seconds(steps, 1)  # warm
    result = {
        f"RQ-VAE training step, {BATCH} items": summary(cpu_seconds(steps, flags.rounds), STEPS),
        f"RQ-KMeans encode, {flags.items:,} x {WIDTH}": summary(cpu_seconds(encodes, flags.rounds), 1),
        f"RQ-KMeans fit, {flags.items:,} x {WIDTH}": summary(cpu_seconds(fits, max(1, flags.rounds // 4)), 1),
    }
    print(table(result))
    if flags.write:
        write_json(RESULT, {"conditions": facts, "results": result})
        write_text(RESULT.with_suffix(".md"), report(result, facts))


if __name__ == "__main__":
    main()
