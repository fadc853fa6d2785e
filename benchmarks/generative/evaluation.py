"""Recall and NDCG of what the beam search finds, where every user has one target, at the level of SIDs and of items.

U users, B users of a batch, W beams, T items of a history, E events, L levels, N items.
"""

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.generative.model import SidTransformer, Trie, search
from benchmarks.generative.sequences import Windows

CUTOFFS = (5, 10, 50, 100)


def metrics_at(rank_U: np.ndarray, credit_U: np.ndarray, longest: int) -> dict[str, float]:
    """Means over users of `gains_at`."""
    return {name: float(np.mean(gain_U)) for name, gain_U in gains_at(rank_U, credit_U, longest).items()}


def gains_at(rank_U: np.ndarray, credit_U: np.ndarray, longest: int) -> dict[str, np.ndarray]:
    """Each user's recall@k and ndcg@k, float64 [U], for every cutoff up to `longest`, the length of the lists.

    rank_U: place of the user's target in the list, from 1; 0 where it is not in it.
    credit_U: what finding it is worth. With 1 everywhere these are the metrics of SIDs. With 1 / g for a SID that g
        items share they are those of items (collision-corrected evaluation, arXiv 2605.25330): the expected value when
        every SID of the list shows one of its items, drawn at random. The ideal list is worth 1 either way.
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


# The rank of each user's target in the beam search.

USERS = 64  # searched at a time


def ranks_of(
    model: SidTransformer, trie: Trie, codes_EL: Tensor, sid_E: np.ndarray, windows: Windows, beam: int
) -> np.ndarray:
    """int64 [U]: place, from 1, of each window's target among the SIDs found for it; 0 where it was not found.

    codes_EL, sid_E: the SIDs of all events' items, and their numbers in the trie.
    """
    rank_U = np.zeros(len(windows), dtype=np.int64)
    by_length_U = np.argsort(-windows.length_W, kind="stable")
    with tqdm(total=len(windows), desc="beam search", unit=" users", disable=None) as bar:
        for user_B in np.split(by_length_U, range(USERS, len(windows), USERS)):
            event_BT, _ = windows.events(user_B)
            length_B = torch.from_numpy(windows.length_W[user_B] - 1)
            found = search(model, trie, codes_EL[torch.from_numpy(event_BT[:, :-1])], length_B, beam)
            target_B = sid_E[windows.begin_W[user_B] + windows.length_W[user_B] - 1]
            hit_BW = (found.sid_BW.numpy() == target_B[:, None]) & np.isfinite(found.score_BW.numpy())
            rank_U[user_B] = np.where(hit_BW.any(axis=1), hit_BW.argmax(axis=1) + 1, 0)
            bar.update(len(user_B))
    return rank_U
