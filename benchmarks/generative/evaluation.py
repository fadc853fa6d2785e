"""Where each user's target comes in what the beam search finds.

U users, B users of a batch, W beams, T items of a history, E events, L levels.
"""

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.generative.beam import search
from benchmarks.generative.model import SidTransformer
from benchmarks.generative.trie import Trie
from benchmarks.generative.windows import Windows

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
