"""Codewords in groups of equal size: balanced k-means (Malinen and Fränti, 2014).

LETTER's constrained k-means by means of scipy's assignment solver, which is a tenth of a second for a thousand
codewords; k-means-constrained would bring OR-Tools along for the same. The effort grows with the cube of K.

Shapes: K codewords, G groups, D width.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

ROUNDS = 10


def balanced_groups(codewords_KD: np.ndarray, group_K: np.ndarray, groups: int) -> np.ndarray:
    """int64 [K]: the group of every codeword, sizes differing by at most one, at a low sum of squared distances.

    group_K: the groups to start from, so that they follow slowly moving codewords; every group has a member, and -1 is
    no group yet.
    """
    slots_K = np.arange(len(codewords_KD)) % groups
    codewords_KD = codewords_KD.astype(np.float64)
    for _ in range(ROUNDS):
        centres_GD = np.stack([codewords_KD[group_K == group].mean(axis=0) for group in range(groups)])
        near_KG = codewords_KD @ centres_GD.T  # as sizes are given, squared lengths sum to the same in any assignment
        next_K = slots_K[linear_sum_assignment(near_KG[:, slots_K], maximize=True)[1]]
        if np.array_equal(next_K, group_K):
            break
        group_K = next_K
    return group_K
