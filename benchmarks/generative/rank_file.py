"""Each user's rank, beside a run's JSON, for comparisons of catalogs user by user.

U users with a target and a history.
"""

from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from sidrec.schema import ContractError


class Ranks(NamedTuple):
    """user_U: int64 user ids. rank_U: int32 place of the target's SID among those found, from 1; 0 where it was not
    found. group_U: int32, how many items share that SID."""

    user_U: np.ndarray
    rank_U: np.ndarray
    group_U: np.ndarray


def ranks_path(out: Path) -> Path:
    """Where the ranks of the run with the JSON `out` are."""
    return out.with_suffix(".npz")


def save_ranks(out: Path, ranks: Ranks, settings_hash: str) -> None:
    """Writes the ranks in one step, with the hash that says which run they are of."""
    path = ranks_path(out)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, settings_hash=np.array(settings_hash), **ranks._asdict())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_ranks(out: Path, settings_hash: str) -> Ranks | None:
    """None where there are none, as beside JSONs made before ranks were saved.

    Raises ContractError for a file that is not of the run with these settings.
    """
    path = ranks_path(out)
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            found, ranks = str(arrays["settings_hash"]), Ranks(*(arrays[name] for name in Ranks._fields))
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ContractError(path, "each user's rank, as a run saves it", error) from None
    if found != settings_hash:
        raise ContractError(path, f"ranks of the run in {out.name}, settings {settings_hash[:12]}", found[:12])
    return ranks
