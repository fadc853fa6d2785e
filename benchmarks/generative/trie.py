"""The prefix tree of the SIDs that exist, as sorted tables: a beam looks up its children without a loop.

N items, S different SIDs, L levels, P beams of all users together, C children of all of them together.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Trie:
    """Nodes of depth d are numbered in the order of their prefixes; depth 0 is the root, depth L the S SIDs themselves.

    begin: for every depth below L, int64 [nodes + 1]: children of node n are nodes begin[n] to begin[n + 1] one deeper.
    code: for every depth from 1 on, int64 [nodes]: the last code of each node's prefix; code[d] belongs to depth d + 1.
    sid_N: int64, the SID number of every item. group_S: int64, how many items share each SID.
    """

    begin: tuple[Tensor, ...]
    code: tuple[Tensor, ...]
    sid_N: np.ndarray
    group_S: np.ndarray

    @classmethod
    def of(cls, codes_NL: np.ndarray) -> "Trie":
        """codes_NL: int64 SIDs of at least one item."""
        sids_SL, sid_N, group_S = np.unique(codes_NL, axis=0, return_inverse=True, return_counts=True)
        opens_S = np.zeros(len(sids_SL), dtype=bool)  # SIDs that open a node at the depth in hand
        opens_S[0] = True
        begin, code = [], []
        for depth in range(codes_NL.shape[1]):
            parents_S = np.cumsum(opens_S) - 1
            opens_S = opens_S | np.append(True, sids_SL[1:, depth] != sids_SL[:-1, depth])
            children = np.bincount(parents_S[opens_S])
            begin.append(torch.from_numpy(np.append(0, np.cumsum(children))))
            code.append(torch.from_numpy(sids_SL[opens_S, depth]))
        return cls(tuple(begin), tuple(code), sid_N.reshape(-1), group_S)

    @property
    def levels(self) -> int:
        """L."""
        return len(self.code)

    def children(self, depth: int, node_P: Tensor) -> tuple[Tensor, Tensor]:
        """All children of nodes at `depth`: whose they are (place in node_P, ascending) and which, int64 [C] each."""
        begin_P = self.begin[depth][node_P]
        count_P = self.begin[depth][node_P + 1] - begin_P
        owner_C = torch.repeat_interleave(count_P)
        first_P = torch.cumsum(count_P, dim=0) - count_P
        return owner_C, torch.arange(len(owner_C)) + (begin_P - first_P)[owner_C]
