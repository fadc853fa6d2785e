"""Beam search along the trie of the SIDs that exist.

B users, T items of a history, L levels, W beams, K codes, C candidates of all users, M the most of one user, P = B W.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.generative.model import SidTransformer
from benchmarks.generative.trie import Trie


class Found(NamedTuple):
    """sid_BW: int64 SID numbers of the trie, best first. score_BW: float, their log-probabilities; -inf where there
    are fewer SIDs than beams, and the SID means nothing."""

    sid_BW: Tensor
    score_BW: Tensor


@torch.no_grad()
def search(model: SidTransformer, trie: Trie, codes_BTL: Tensor, length_B: Tensor, beam: int) -> Found:
    """The SIDs that most probably come next; exact once `beam` is at least the number of different SIDs.

    A score is the sum over levels of the log-softmax over all K codes; those that lead to no SID are never entered.

    codes_BTL: int64 histories of at least one item, padded at the end. length_B: int64.
    """
    users = len(length_B)
    decoding = model.start(codes_BTL, length_B)
    node_BW, code_BW = torch.zeros(users, 1, dtype=torch.int64), None
    score_BW = torch.zeros(users, 1)
    for depth in range(trie.levels):
        logits_BWK = model.step(decoding, code_BW)
        next_PK = (functional.log_softmax(logits_BWK, dim=2) + score_BW[..., None]).flatten(0, 1)
        owner_C, child_C = trie.children(depth, node_BW.flatten())
        score_C = next_PK[owner_C, trie.code[depth][child_C]]
        user_C, beams = owner_C // node_BW.shape[1], node_BW.shape[1]
        place_C, most = _places(user_C, users)
        score_BM = score_C.new_full((users, most), -torch.inf)
        score_BM[user_C, place_C] = score_C
        candidate_BM = torch.zeros(users, most, dtype=torch.int64)
        candidate_BM[user_C, place_C] = torch.arange(len(owner_C))
        score_BW, top_BW = score_BM.topk(min(beam, most), dim=1)
        chosen_BW = candidate_BM.gather(1, top_BW)
        node_BW = child_C[chosen_BW]
        code_BW = trie.code[depth][node_BW]
        decoding.follow(owner_C[chosen_BW] % beams)
    return Found(node_BW, score_BW)


def _places(user_C: Tensor, users: int) -> tuple[Tensor, int]:
    """The place of each candidate among its user's, and how many the user with most has. user_C: ascending."""
    count_B = torch.bincount(user_C, minlength=users)
    first_B = torch.cumsum(count_B, dim=0) - count_B
    return torch.arange(len(user_C)) - first_B[user_C], int(count_B.max())
