"""Ranks filled with tables, and made more even: cheap searches over a Board.

Shapes: W ranks, S shards of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sidrec.plans.placing import Board, Piece

EVENNESS = 4
"""Power of the ranks' loads whose sum a table is put down by: the higher, the more only the slowest rank counts."""
MOVES = 200
MOVABLE = 12
"""Tables of the slowest rank, the costliest ones, that a move is sought for."""

Pieces = Mapping[str, Sequence[Piece]]


def fill(pieces: Pieces, board: Board) -> Board | None:
    """Puts down the costliest table first, each where the ranks' loads stay most even; None where one does not fit."""
    if any(not found for found in pieces.values()):
        return None
    cheapest = {
        name: min(float(each.own_S.sum()) + each.everywhere * len(board.load_W) for each in found)
        for name, found in pieces.items()
    }
    for name in sorted(pieces, key=lambda table: -cheapest[table]):
        ways = [(each, rank_S) for each in pieces[name] for rank_S in board.ranks_for(each)]
        if not ways:
            return None
        scale = max(float(board.load_W.max()), cheapest[name] / len(board.load_W)) or 1.0
        board.put(*min(ways, key=lambda way: float(((board.load_with(*way) / scale) ** EVENNESS).sum())))
    return board


def move_tables(board: Board, pieces: Pieces, moves: int = MOVES) -> None:
    """Moves tables of the slowest rank elsewhere, or lays them out otherwise, as long as the slowest rank gains."""
    for _ in range(moves):
        slowest = int(board.load_W.argmax())
        best, score = None, _slowness(board.load_W)
        for name in _costliest(board, slowest):
            old = board.take(name)
            for each in pieces[name]:
                for rank_S in board.ranks_for(each):
                    new = _slowness(board.load_with(each, rank_S))
                    if new < score:
                        best, score = (each, rank_S), new
            board.put(*old)
        if best is None:
            return
        board.take(best[0].option.name)
        board.put(*best)


def _costliest(board: Board, rank: int) -> list[str]:
    here = {
        name: each.everywhere + float(each.own_S[rank_S == rank].sum()) for name, (each, rank_S) in board.placed.items()
    }
    return sorted(here, key=lambda name: -here[name])[:MOVABLE]


def _slowness(load_W: np.ndarray) -> tuple[float, float]:
    """The slowest rank, and what tells plans apart that are as slow. Rounded: no move gains a rounding error."""
    return round(float(load_W.max()), 9), round(float((load_W**2).sum()), 6)


def by_bytes(pieces: Pieces) -> dict[str, list[Piece]]:
    """The same pieces, costing what they take in the place of what they last."""
    return {
        name: [replace(each, everywhere=0.0, own_S=each.bytes_S2.sum(axis=1).astype(float)) for each in found]
        for name, found in pieces.items()
    }


def fill_evenly(pieces: Pieces, board: Board) -> Board | None:
    """Fills ranks so that their memory is even, then puts the pieces there as they cost; None where they do not fit."""
    even = fill(by_bytes(pieces), board.copy())
    if even is None:
        return None
    for each, rank_S in even.placed.values():
        board.put(next(real for real in pieces[each.option.name] if real.option is each.option), rank_S)
    return board
