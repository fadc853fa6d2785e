"""Resolves collisions: items that share a SID move to the nearest free code of the last level.

Only the last code changes, so an item keeps its prefix (the "ZCR" of arXiv 2605.25330, except that an item without a
collision keeps its SID). Within a prefix, scipy finds the cheapest assignment; in very large prefixes, items take turns
in rounds. In a prefix with more items than codes, some items keep sharing.

Shapes: N items, M older items, V vector width, L levels, K codes of the last level, R items on shared SIDs of some
prefixes, O items of one prefix that must move, F free codes of the prefix.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sidrec.io.progress import Bar
from sidrec.schema import ContractError
from sidrec.sid.tokenizer import Tokenizer

COSTS_IN_MEMORY = 1 << 24  # costs in memory at a time; the items of one prefix are never split
LARGEST_EXACT = 1 << 22  # largest O * F for which the cheapest assignment is found


class Resolution(NamedTuple):
    """codes_NL: with new last codes. moved: items that got one. unresolved: items that found no free code."""

    codes_NL: np.ndarray
    moved: int
    unresolved: int


def resolve(
    vectors_NV: np.ndarray,
    codes_NL: np.ndarray,
    tokenizer: Tokenizer,
    taken_ML: np.ndarray | None = None,
    most_costs: int = COSTS_IN_MEMORY,
    exact: int = LARGEST_EXACT,
) -> Resolution:
    """Of the items on one SID, the one with the lowest cost stays; the others move to free last codes.

    taken_ML: SIDs of older items. An older item never moves; a new item on its SID always does.
    most_costs: in memory at a time. exact: the largest O * F for which the cheapest assignment is found.
    Among equal costs the first item wins. Raises ContractError when the tokenizer has no `last_level_costs`.
    """
    size = tokenizer.codebook_sizes[-1]
    sid_N, taken_M = _sid_numbers(codes_NL, codes_NL[:0] if taken_ML is None else taken_ML, tokenizer.codebook_sizes)
    taken = np.unique(taken_M)
    occupied, sid_index_N, counts = np.unique(np.concatenate([sid_N, taken]), return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[sid_index_N[: len(sid_N)]] > 1)
    shared = shared[np.argsort(sid_N[shared], kind="stable")]
    resolved_NL, moved, unresolved = codes_NL.copy(), 0, 0
    with Bar(total=len(shared), desc="resolve collisions", unit=" items", disable=None) as bar:
        for block in _blocks(shared, sid_N // size, max(1, most_costs // size)):
            costs_RK = _costs(_rows(vectors_NV, block), codes_NL[block], tokenizer)
            leaving = np.flatnonzero(~_stay(sid_N[block], costs_RK, size, taken))
            for rows in _groups(leaving, sid_N[block[leaving]] // size):
                free_F = _free(occupied, int(sid_N[block[rows[0]]]) // size, size)
                which, where = _assign(costs_RK[np.ix_(rows, free_F)], exact)
                resolved_NL[block[rows[which]], -1] = free_F[where]
                moved, unresolved = moved + len(which), unresolved + len(rows) - len(which)
            bar.update(len(block))
    return Resolution(resolved_NL, moved, unresolved)


def _sid_numbers(
    codes_NL: np.ndarray, taken_ML: np.ndarray, codebook_sizes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N] and [M]: prefix number * K + last code. Prefixes are renumbered at each level: no product overflows."""
    codes = np.concatenate([codes_NL, taken_ML])
    number = np.zeros(len(codes), dtype=np.int64)
    for level, size in enumerate(codebook_sizes):
        if level:
            _, number = np.unique(number, return_inverse=True)
        number = number * size + codes[:, level]
    return number[: len(codes_NL)], number[len(codes_NL) :]


def _blocks(rows: np.ndarray, prefix_N: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Cuts `rows`, sorted by prefix, into parts of whole prefixes: up to `most` rows, or one prefix."""
    ends = np.append(np.flatnonzero(np.diff(prefix_N[rows])) + 1, len(rows))
    start = 0
    while start < len(rows):
        fitting = ends[(ends > start) & (ends <= start + most)]
        end = int(fitting[-1] if len(fitting) else ends[ends > start][0])
        yield rows[start:end]
        start = end


def _groups(rows: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """Cuts `rows`, sorted by key, where the key changes; an empty list without rows."""
    return np.split(rows, np.flatnonzero(np.diff(keys)) + 1) if len(rows) else []


def _rows(vectors_NV: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`vectors_NV[rows]`, read in file order: the rows of a prefix are scattered over the file."""
    order = np.argsort(rows)
    found = vectors_NV[rows[order]]
    vectors_RV = np.empty_like(found)
    vectors_RV[order] = found
    return vectors_RV


def _costs(vectors_RV: np.ndarray, codes_RL: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    costs_RK = tokenizer.last_level_costs(np.asarray(vectors_RV, np.float32), codes_RL)
    if costs_RK is None:
        expected = "a tokenizer whose last level tells how well each code fits an item"
        raise ContractError("resolving collisions", expected, type(tokenizer).__name__)
    return costs_RK


def _stay(sid_R: np.ndarray, costs_RK: np.ndarray, size: int, taken: np.ndarray) -> np.ndarray:
    """bool [R]: the item of lowest cost on each SID that no older item has."""
    own_R = costs_RK[np.arange(len(sid_R)), sid_R % size]
    order = np.lexsort((own_R, sid_R))
    first = np.diff(sid_R[order], prepend=-1) != 0
    stay_R = np.zeros(len(sid_R), dtype=bool)
    stay_R[order[first]] = True
    return stay_R & ~np.isin(sid_R, taken)


def _free(occupied: np.ndarray, prefix: int, size: int) -> np.ndarray:
    """Last codes of the prefix that no item has, ascending. occupied: all SID numbers in use, ascending."""
    begin, end = np.searchsorted(occupied, [prefix * size, (prefix + 1) * size])
    return np.setdiff1d(np.arange(size), occupied[begin:end] - prefix * size, assume_unique=True)


def _assign(costs_OF: np.ndarray, exact: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column numbers of min(O, F) pairs of the lowest total cost, or for large inputs nearly the lowest."""
    from scipy.optimize import linear_sum_assignment  # takes long to import

    if costs_OF.size <= exact:
        rows, columns = linear_sum_assignment(costs_OF)
        return rows, columns
    return _assign_in_rounds(costs_OF)


def _assign_in_rounds(costs_OF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In each round every row bids for its cheapest free column, and each column goes to its cheapest bidder."""
    free, waiting = np.arange(costs_OF.shape[1]), np.arange(len(costs_OF))
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    while len(free) and len(waiting):
        offers = costs_OF[np.ix_(waiting, free)]
        wish = offers.argmin(axis=1)
        order = np.lexsort((offers[np.arange(len(wish)), wish], wish))
        winners = order[np.diff(wish[order], prepend=-1) != 0]
        rows.append(waiting[winners])
        columns.append(free[wish[winners]])
        waiting, free = np.delete(waiting, winners), np.delete(free, wish[winners])
    return np.concatenate(rows or [waiting[:0]]), np.concatenate(columns or [free[:0]])
