"""Pieces of sequences that fit the model: a history, and after each of its items the next one as target.

W windows, B windows of a batch, T items of a history, E events, U users, L levels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.generative.protocol import NO_EVENT


@dataclass(frozen=True)
class Windows:
    """Window w has events begin_W[w] to begin_W[w] + length_W[w], the last of which is only a target.

    every_target: whether all but the first event are targets, or the last one alone.
    """

    begin_W: np.ndarray
    length_W: np.ndarray
    every_target: bool

    @classmethod
    def over(cls, begin_U: np.ndarray, end_U: np.ndarray, history: int) -> "Windows":
        """Cuts events begin_U[u] to end_U[u], so that each but a user's first is a target once."""
        targets_U = np.maximum(end_U - begin_U - 1, 0)
        pieces_U = -(-targets_U // history)
        user_W = np.repeat(np.arange(len(begin_U)), pieces_U)
        place_W = np.arange(len(user_W)) - np.repeat(np.cumsum(pieces_U) - pieces_U, pieces_U)
        begin_W = begin_U[user_W] + place_W * history
        return cls(begin_W, np.minimum(end_U[user_W] - begin_W, history + 1), True)

    @classmethod
    def before(cls, begin_U: np.ndarray, event_U: np.ndarray, history: int) -> "Windows":
        """One window for each user with an event to predict and a history, which lasts up to that event."""
        usable_U = (event_U != NO_EVENT) & (event_U > begin_U)
        begin_W = np.maximum(begin_U[usable_U], event_U[usable_U] - history)
        return cls(begin_W, event_U[usable_U] - begin_W + 1, False)

    def __len__(self) -> int:
        return len(self.begin_W)

    def batches(self, items: int, random: np.random.Generator) -> Iterator[np.ndarray]:
        """All windows in random batches of like lengths, at most `items` long with padding; yields window numbers."""
        by_length_W = np.lexsort((random.random(len(self)), -self.length_W))
        cuts = [0]
        while cuts[-1] < len(by_length_W):
            cuts.append(cuts[-1] + max(1, items // (int(self.length_W[by_length_W[cuts[-1]]]) - 1)))
        for number in random.permutation(len(cuts) - 1):
            yield by_length_W[cuts[number] : cuts[number + 1]]

    def events(self, window_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Events int64 [B, T + 1], padded at the end with the window's first, and which of the T targets are wanted."""
        length_B = self.length_W[window_B][:, None]
        place_T = np.arange(int(length_B.max()))
        event_BT = self.begin_W[window_B][:, None] + np.where(place_T < length_B, place_T, 0)
        target_T = place_T[1:]
        return event_BT, target_T < length_B if self.every_target else target_T == length_B - 1
