"""Item-level differences between catalogs, with intervals of a paired bootstrap over users.

U users, M metrics, C catalogs, R resamples.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.generative.entries import Entry
from benchmarks.generative.metrics import gains_at
from benchmarks.generative.rank_file import Ranks
from sidrec.schema import ContractError
from sidrec.study.intervals import RESAMPLES, SEED, Difference, interval, user_multiplicities


def differences(entries: Sequence[Entry], reference: Entry, metrics: Sequence[str]) -> dict[str, dict[str, Difference]]:
    """Name -> metric -> how far the catalog is from the reference, mean over seeds.

    Users are drawn with replacement, the same draws for all catalogs, metrics and seeds; an interval says how far
    other users could move the difference, not other seeds. Catalogs without ranks are left out: all of them, if it is
    the reference that has none. Raises ContractError for ranks of other users than the reference's.
    """
    known = {of.name: of.ranks for of in entries if of.ranks is not None and of.name != reference.name}
    if reference.ranks is None or not known:
        return {}
    user_U = reference.ranks[0].user_U
    for name, seeds in {reference.name: reference.ranks, **known}.items():
        if not all(np.array_equal(of.user_U, user_U) for of in seeds):
            raise ContractError(f"ranks of {name}", f"the users of {reference.name}", "others")
    longest = reference.results[0]["settings"]["beam"]
    base_MU = _gains(reference.ranks, metrics, longest)
    moved_CMU = np.stack([_gains(seeds, metrics, longest) - base_MU for seeds in known.values()])
    chunks = user_multiplicities(len(user_U), RESAMPLES, SEED)
    resampled_CMR = np.concatenate([moved_CMU @ drawn_RU.T / len(user_U) for drawn_RU in chunks], axis=2)
    return {
        name: {
            metric: interval(float(moved_CMU[row, column].mean()), resampled_CMR[row, column])
            for column, metric in enumerate(metrics)
        }
        for row, name in enumerate(known)
    }


def _gains(seeds: Sequence[Ranks], metrics: Sequence[str], longest: int) -> np.ndarray:
    """float64 [M, U]: each user's item-level metrics, mean over seeds."""
    gains = [gains_at(of.rank_U, 1 / of.group_U, longest) for of in seeds]
    return np.stack([np.mean([of[metric] for of in gains], axis=0) for metric in metrics])
