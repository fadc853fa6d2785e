"""Recall and NDCG where every user has one target, at the level of SIDs and of items.

U users, N items.
"""

import numpy as np

CUTOFFS = (5, 10, 50, 100)


def metrics_at(rank_U: np.ndarray, credit_U: np.ndarray, longest: int) -> dict[str, float]:
    """Means over users of `gains_at`."""
    return {name: float(np.mean(gain_U)) for name, gain_U in gains_at(rank_U, credit_U, longest).items()}


def gains_at(rank_U: np.ndarray, credit_U: np.ndarray, longest: int) -> dict[str, np.ndarray]:
    """Each user's recall@k and ndcg@k, float64 [U], for every cutoff up to `longest`, the length of the lists.

    rank_U: place of the user's target in the list, from 1; 0 where it is not in it.
    credit_U: what finding it is worth. With 1 everywhere these are the metrics of SIDs. With 1 / g for a SID that g
        items share they are those of items (collision-corrected evaluation, arXiv 2605.25330): the expected value when
        every SID of the list stands for one of its items, drawn at random. The ideal list is worth 1 either way.
    """
    found = {}
    gain_U = np.where(rank_U > 0, credit_U / np.log2(np.maximum(rank_U, 1) + 1), 0.0)
    for cutoff in (cutoff for cutoff in CUTOFFS if cutoff <= longest):
        hit_U = (rank_U > 0) & (rank_U <= cutoff)
        found[f"recall@{cutoff}"] = hit_U * credit_U
        found[f"ndcg@{cutoff}"] = hit_U * gain_U
    return found


def popularity_ranks(count_N: np.ndarray, target_U: np.ndarray, longest: int) -> np.ndarray:
    """int64 [U]: rank of each target among the `longest` items with the highest counts, 0 where it is not among them.

    Of equal counts the earlier item comes first; items without any count are not listed.
    """
    top = np.lexsort((np.arange(len(count_N)), -count_N))[:longest]
    top = top[count_N[top] > 0]
    rank_N = np.zeros(len(count_N), dtype=np.int64)
    rank_N[top] = np.arange(1, len(top) + 1)
    return rank_N[target_U]
