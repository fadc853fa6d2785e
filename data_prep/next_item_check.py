"""Do behaviour vectors know anything? Hit rate at 10 of each user's last train event, against popularity.

B users of a chunk, M items, U users, T positions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from data_prep.sasrec import SasRec
from data_prep.sasrec_training import SasRecSettings, train_sasrec
from data_prep.sequences import Sequences

TOP = 10
MOST_USERS = 10_000  # a seeded sample of them where there are more
CHUNK = 128


@dataclass(frozen=True)
class HitRates:
    """Share of `users` whose held-out item is among the TOP of all items that the user had not had before."""

    users: int
    sasrec: float
    popularity: float


def check_next_item(sequences: Sequences, settings: SasRecSettings) -> HitRates | None:
    """Trains a model of its own without anybody's last event, and predicts these.

    Popularity counts the same remaining events. Users with one event, or whose last item they had had before, are left
    out; None when nobody is left.
    """
    known = sequences.without_last()
    users = _users_to_check(sequences, settings.seed)
    if not len(users):
        return None
    popularity_M = known.frequencies().astype(np.float32)
    model, _ = train_sasrec(known, settings, "SASRec without last events")
    hits = np.zeros(2)
    for chunk_B in np.array_split(users, -(-len(users) // CHUNK)):
        target_B = sequences.items_E[sequences.offsets[chunk_B + 1] - 1]
        had = [known.items_E[known.offsets[user] : known.offsets[user + 1]] for user in chunk_B]
        popularity_BM = np.repeat(popularity_M[None], len(chunk_B), axis=0)
        for place, scores_BM in enumerate((_scores(model, had, settings.length), popularity_BM)):
            hits[place] += hits_of(scores_BM, target_B, had)
    sasrec, popularity = (hits / len(users)).tolist()
    return HitRates(len(users), sasrec, popularity)


def _users_to_check(sequences: Sequences, seed: int) -> np.ndarray:
    last_U = sequences.items_E[sequences.offsets[1:] - 1]
    repeats_E = sequences.items_E == np.repeat(last_U, sequences.lengths())
    once_U = np.add.reduceat(repeats_E, sequences.offsets[:-1]) == 1
    users = np.flatnonzero(once_U & (sequences.lengths() > 1))
    if len(users) <= MOST_USERS:
        return users
    return np.sort(np.random.default_rng(seed).choice(users, MOST_USERS, replace=False))


@torch.no_grad()
def _scores(model: SasRec, had: list[np.ndarray], length: int) -> np.ndarray:
    """float32 [B, M] from the latest events of each user."""
    recent = [np.append(model.start, items)[-length:] for items in had]
    inputs_BT = np.full((len(recent), max(map(len, recent))), model.start)
    for row, items in zip(inputs_BT, recent, strict=True):
        row[: len(items)] = items
    last_B = torch.tensor([len(items) - 1 for items in recent])
    hidden_BD = model(torch.from_numpy(inputs_BT))[torch.arange(len(recent)), last_B]
    return np.asarray((hidden_BD @ model.items.weight[: model.start].T).numpy())


def hits_of(scores_BM: np.ndarray, target_B: np.ndarray, had: list[np.ndarray]) -> int:
    """Rows whose target is among the TOP items that are not in `had`; of equal scores the lower item wins."""
    own_B = scores_BM[np.arange(len(target_B)), target_B][:, None]
    ahead_BM = scores_BM > own_B
    ahead_BM |= (scores_BM == own_B) & (np.arange(scores_BM.shape[1]) < target_B[:, None])
    for row, items in zip(ahead_BM, had, strict=True):
        row[items] = False
    return int((ahead_BM.sum(axis=1) < TOP).sum())
