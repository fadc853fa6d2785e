"""A uniform sample of users whose rows are all counted, however many users and rows go by.

The sample is the K users with the smallest keys (a bottom-K sketch: Cohen & Kaplan, PODC 2007). The key is a bijection
of the user id that looks random, so no two users share one. The K-th smallest key only ever falls: whoever is in the
sample at the end was in it from its first row on, and its rows are complete. For the same reason the samples of ranks
merge without loss: a user among the K smallest of all is among the K smallest of each rank that met it.

Shapes: N rows, K users of the sample, M users that are new to it.
"""

import torch
from torch import Tensor

FREE = torch.iinfo(torch.int64).max
"""Key of a place that no user holds: larger than all others, so free places fill first."""

SMALLEST, SPAN = -(2.0**63), 2.0**64


def user_keys(user_N: Tensor) -> Tensor:
    """int64 [N], a bijection of int64: splitmix64's finaliser (Steele, Lea & Flood, OOPSLA 2014), modulo 2**64."""
    key_N = user_N
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key_N = (key_N ^ _shifted(key_N, shift)) * (factor - 2**64)
    return key_N ^ _shifted(key_N, 31)


def _shifted(key_N: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign."""
    return (key_N >> by) & ((1 << (64 - by)) - 1)


def admit(key_K: Tensor, place_K: Tensor, key_N: Tensor) -> Tensor:
    """Lets users into the sample, in place; returns the places [M] of newcomers, whose counts must restart at 0.

    key_N: the users that come by.
    key_K: int64, ascending. place_K: the place each key's counts are kept at; a newcomer takes over that of the user
    with the largest key, who leaves.
    """
    distinct = torch.unique(key_N)
    _, known = look_up(key_K, distinct)
    fresh = distinct[~known][: len(key_K)]
    # The m-th smallest newcomer enters where it is smaller than the m-th largest key, which leaves for it.
    entering = int((fresh < key_K.flip(0)[: len(fresh)]).sum())
    staying = len(key_K) - entering
    freed_M = place_K[staying:].clone()
    if entering:
        keys, order = torch.cat([key_K[:staying], fresh[:entering]]).sort(stable=True)
        key_K.copy_(keys)
        place_K.copy_(torch.cat([place_K[:staying], freed_M])[order])
    return freed_M


def look_up(key_K: Tensor, key_N: Tensor) -> tuple[Tensor, Tensor]:
    """For each key its index into key_K, and whether it is there at all (bool); the index means nothing where not."""
    index_N = torch.searchsorted(key_K, key_N).clamp_(max=len(key_K) - 1)
    return index_N, key_K[index_N] == key_N


def smallest(keys: Tensor, users: int) -> Tensor:
    """The `users` smallest distinct keys, ascending; free places fill up what is missing."""
    distinct = torch.unique(keys)[:users]
    return torch.cat([distinct, distinct.new_full((users - len(distinct),), FREE)])


def sampled_share(key_K: Tensor) -> float:
    """The share of users that the sample holds: 1 while it has free places, else how far up all keys it reaches."""
    last = int(key_K[-1])
    return 1.0 if last == FREE else (last - SMALLEST + 1.0) / SPAN
