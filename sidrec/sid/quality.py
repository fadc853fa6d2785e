"""Quality of a set of codes: use of the codebooks, collisions of whole SIDs, reconstruction, neighbourhoods.

Papers use the same name for different metrics ("collision rate"). Here every metric has a field of its own, with its
definition and source.

Shapes: N items, L levels, K codes, G occupied SIDs, V vector width, P pairs, Q distinct query items.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sidrec.io.progress import Bar
from sidrec.schema import ContractError
from sidrec.sid.tokenizer import Tokenizer

ROWS = 65_536  # vectors decoded at a time
HASHED = 512  # rows hashed at a time, which stay in the cache

# Bounds of the verdict. Codes beyond them can still serve, but say little of each item.
MOST_COLLISIONS = 0.3
"""Collision rate of a catalog, apart from items whose vectors are equal."""
LARGEST_GROUP = 0.01
"""Share of the items on one SID; 10 items, and a group with equal vectors, are never too many."""
LEAST_UTILISATION = 0.5
"""Share of a level's codes in use, of those that the number of items can use."""


@dataclass(frozen=True)
class CodeQuality:
    """Code metrics over items, each item counted once. Lists have one entry per level. Entropies use log 0 = 0."""

    items: int
    token_entropy_nats: list[float]
    """H_l = -sum_k p_lk ln p_lk, p_lk the share of items with code k at level l; at most ln K."""
    token_entropy_bits: list[float]
    """The same in bits; at most log2 K."""
    mean_token_entropy_nats: float
    """Mean of H_l over levels (ADC-SID's "token distribution entropy", arXiv 2510.25622)."""
    utilisation: list[float]
    """Codes used by some item, divided by K."""
    dead_codes: list[int]
    """Codes used by no item."""
    perplexity: list[float]
    """exp(H_l): the number of evenly used codes that has this entropy."""
    mean_perplexity: float
    min_perplexity: float
    top1_load: list[float]
    """Share of items on the most used code."""
    sid_entropy_nats: float
    """Entropy of whole SIDs; at most ln N (QuaSID, AdaSID)."""
    unique_prefixes: list[int]
    """Distinct SIDs cut after level 1, 2, ..; the last is the number of unique SIDs."""
    collision_rate: float
    """(N - unique SIDs) / N (LETTER, MiniOneRec)."""
    collided_item_rate: float
    """Items that share their SID with another item, divided by N (arXiv 2605.25330)."""
    max_group_size: int
    """Items on the SID that has most."""
    mean_group_size: float
    """Items per occupied SID."""
    gini: float
    """Gini coefficient of the sizes of occupied SIDs, 0 when all are equal (FORGE)."""


@dataclass(frozen=True)
class ReconstructionError:
    """Distance of item vectors, as the tokenizer got them, from the vectors that their codes decode to."""

    squared_error: float
    """Mean over items of the squared L2 error (summed over dimensions)."""
    variance: float
    """Mean over items of the squared L2 distance from the mean vector."""
    unexplained_variance: float
    """squared_error / variance: 0 is perfect, 1 as good as the mean vector for every item."""


def code_quality(codes_NL: np.ndarray, codebook_sizes: tuple[int, ...]) -> CodeQuality:
    """All metrics that depend on the codes alone. Raises ContractError without items."""
    items = len(codes_NL)
    if not items:
        raise ContractError("codes", "at least one item", items)
    loads = [np.bincount(codes, minlength=size) / items for codes, size in zip(codes_NL.T, codebook_sizes, strict=True)]
    entropies = [_entropy_nats(load) for load in loads]
    perplexities = [float(np.exp(entropy)) for entropy in entropies]
    prefixes = [np.bincount(prefix_N) for prefix_N in _prefixes(codes_NL, codebook_sizes)]
    groups_G = prefixes[-1]
    return CodeQuality(
        items=items,
        token_entropy_nats=entropies,
        token_entropy_bits=[float(entropy / np.log(2)) for entropy in entropies],
        mean_token_entropy_nats=float(np.mean(entropies)),
        utilisation=[float((load > 0).mean()) for load in loads],
        dead_codes=[int((load == 0).sum()) for load in loads],
        perplexity=perplexities,
        mean_perplexity=float(np.mean(perplexities)),
        min_perplexity=min(perplexities),
        top1_load=[float(load.max()) for load in loads],
        sid_entropy_nats=_entropy_nats(groups_G / items),
        unique_prefixes=[len(groups) for groups in prefixes],
        collision_rate=(items - len(groups_G)) / items,
        collided_item_rate=float(groups_G[groups_G > 1].sum() / items),
        max_group_size=int(groups_G.max()),
        mean_group_size=items / len(groups_G),
        gini=gini(groups_G),
    )


def reconstruction_error(
    vectors_NV: np.ndarray,
    codes_NL: np.ndarray,
    tokenizer: Tokenizer,
    weights_NL: np.ndarray | None = None,
    rows: int = ROWS,
) -> ReconstructionError | None:
    """Error of decoded codes, in bounded memory. None when the tokenizer cannot decode.

    weights_NL: token weights, of a tokenizer that has some. rows: vectors decoded at a time.
    """
    squared = deviation = 0.0
    mean_V = vectors_NV.mean(axis=0, dtype=np.float64).astype(np.float32)
    for start in Bar(range(0, len(vectors_NV), rows), desc="reconstruct", unit_scale=rows, unit=" items", disable=None):
        part = vectors_NV[start : start + rows]
        weights = None if weights_NL is None else weights_NL[start : start + rows]
        decoded = tokenizer.decode(codes_NL[start : start + rows], weights)
        if decoded is None:
            return None
        squared += float(np.square(part - decoded).sum(dtype=np.float64))
        deviation += float(np.square(part - mean_V).sum(dtype=np.float64))
    items = len(vectors_NV)
    unexplained = squared / deviation if deviation else float(squared > 0)
    return ReconstructionError(squared / items, deviation / items, unexplained)


@dataclass(frozen=True)
class EqualVectors:
    """Items whose vectors are equal, which no learner can tell apart.

    items: items with the vector of an earlier item. largest: items that share one vector.
    """

    items: int
    largest: int


def equal_vectors(vectors_NV: np.ndarray) -> EqualVectors:
    """Counts items with equal vectors, bit by bit, by a hash of 16 bytes an item; the vectors may be a memory map."""
    starts = range(0, len(vectors_NV), HASHED)
    hashes_N2 = np.concatenate([_row_hashes(vectors_NV[start : start + HASHED]) for start in starts])
    ascending_N2 = hashes_N2[np.lexsort(hashes_N2.T)]
    first = np.flatnonzero(np.append(True, (ascending_N2[1:] != ascending_N2[:-1]).any(axis=1)))
    return EqualVectors(len(vectors_NV) - len(first), int(np.diff(first, append=len(vectors_NV)).max()))


def _row_hashes(rows_CV: np.ndarray) -> np.ndarray:
    """uint64 [C, 2]: two sums of the row's 64-bit words, each times a random odd number of its place.

    Words are mixed first: floats often differ in their high bits alone, and a product moves bits upwards only.
    """
    words = -(-rows_CV.shape[1] * rows_CV.itemsize // 8)
    words_CW = np.zeros((len(rows_CV), words), dtype=np.uint64)
    words_CW.view(rows_CV.dtype)[:, : rows_CV.shape[1]] = rows_CV
    words_CW ^= words_CW >> np.uint64(29)
    factors_2W = np.random.default_rng(0).integers(2**64, size=(2, words), dtype=np.uint64) | np.uint64(1)
    return np.stack([np.einsum("cw,w->c", words_CW, factors_W) for factors_W in factors_2W], axis=1)


def check_collapse(quality: CodeQuality, equal: EqualVectors) -> None:
    """Raises ContractError where all items got one SID, although their vectors differ."""
    if quality.unique_prefixes[-1] == 1 and equal.items < quality.items - 1:
        expected = "codes that tell items apart"
        got = f"one semantic ID for all {quality.items:,} items; try other vectors, or another learner"
        raise ContractError("the fitted tokenizer", expected, got)


def quality_verdict(quality: CodeQuality, codebook_sizes: tuple[int, ...], equal: EqualVectors) -> str:
    """One line: whether collisions, the largest group and utilisation are within their bounds."""
    collisions = quality.collision_rate - equal.items / quality.items
    group, most = quality.max_group_size, max(10, int(LARGEST_GROUP * quality.items), equal.largest)
    distinct = quality.items - equal.items
    levels = zip(codebook_sizes, quality.dead_codes, strict=True)
    used = min((size - dead) / min(size, distinct) for size, dead in levels)
    apart = f" apart from {equal.items:,} items with equal vectors" if equal.items else ""
    facts = [
        (collisions <= MOST_COLLISIONS, f"collision rate {collisions:.3f}{apart} (at most {MOST_COLLISIONS:g})"),
        (group <= most, f"largest group {group:,} of {quality.items:,} items (at most {most:,})"),
        (used >= LEAST_UTILISATION, f"least utilisation of a level {used:.2f} (at least {LEAST_UTILISATION:g})"),
    ]
    if all(sound for sound, _ in facts):
        return f"codes: within all bounds: {'; '.join(fact for _, fact in facts)}"
    beyond = "; ".join(fact for sound, fact in facts if not sound)
    return f"codes: POOR: {beyond}; try more levels, another codebook_size, or other vectors"


def embedding_hit_rate(vectors_NV: np.ndarray, pairs_P2: np.ndarray, k: int) -> float:
    """Mean over query items of |neighbours among the k items nearest by cosine| / |neighbours|.

    pairs_P2: int64 row numbers (query, neighbour); give both directions for symmetric pairs. An item is not its own
        neighbour. Pass decoded vectors to measure the SIDs instead of the embeddings.
    Raises ContractError when there is no pair of two different items.
    """
    import faiss

    pairs = np.unique(pairs_P2[pairs_P2[:, 0] != pairs_P2[:, 1]], axis=0)
    if not len(pairs):
        raise ContractError("item pairs", "at least one pair of different items", len(pairs))
    queries_Q, query_P, neighbours_Q = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    unit = vectors_NV / np.maximum(np.linalg.norm(vectors_NV, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    unit = unit.astype(np.float32)
    _, near = faiss.knn(unit[queries_Q], unit, min(k + 1, len(unit)), metric=faiss.METRIC_INNER_PRODUCT)
    itself_last = np.argsort(near == queries_Q[:, None], axis=1, kind="stable")
    near = np.take_along_axis(near, itself_last, axis=1)[:, :k]
    hits_P = (near[query_P] == pairs[:, 1:]).any(axis=1)
    return float((np.bincount(query_P, weights=hits_P) / neighbours_Q).mean())


def quality_table(report: Mapping[str, object]) -> str:
    """The metrics as aligned plain text, one per line; levels side by side."""
    lines = []
    for name, value in report.items():
        values = value if isinstance(value, list) else [value]
        cells = [f"{cell:>10.4f}" if isinstance(cell, float) else f"{cell!s:>10}" for cell in values]
        lines.append(f"{name:<26}" + "".join(cells))
    return "\n".join(lines)


def group_sizes(codes_NL: np.ndarray, codebook_sizes: tuple[int, ...]) -> np.ndarray:
    """int64 [G]: the number of items on each occupied SID."""
    *_, last = _prefixes(codes_NL, codebook_sizes)
    return np.bincount(last)


def gini(sizes_G: np.ndarray) -> float:
    """Gini coefficient of positive sizes: (n+1)/n - 2 sum_r (n+1-r) c_(r) / (n sum c), c ascending (FORGE)."""
    ascending = np.sort(sizes_G)
    n = len(ascending)
    return float((n + 1) / n - 2 * (np.arange(n, 0, -1) @ ascending) / (n * ascending.sum()))


def _entropy_nats(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum()) + 0.0  # turns -0.0 into 0.0


def _prefixes(codes_NL: np.ndarray, codebook_sizes: tuple[int, ...]) -> Iterator[np.ndarray]:
    """For each depth, int64 [N]: a dense number of every item's prefix, so that no product of K overflows."""
    prefix_N = np.zeros(len(codes_NL), dtype=np.int64)
    for codes, size in zip(codes_NL.T, codebook_sizes, strict=True):
        _, prefix_N = np.unique(prefix_N * size + codes, return_inverse=True)
        yield prefix_N
