"""The files of a run: settings and figures as JSON, and each user's rank as NPZ.

U users with a target and a history.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict
from zipfile import BadZipFile

import numpy as np

from sidrec.io.files import read_json, write_json
from sidrec.machine import unwritable
from sidrec.schema import LOG, MANIFEST, ContractError
from sidrec.study.results import Conditions


@dataclass(frozen=True)
class Size:
    """layers: of the encoder, and as many of the decoder. feedforward: hidden width of a layer's network."""

    layers: int
    width: int
    heads: int
    feedforward: int


SIZES = {"small": Size(1, 64, 4, 256), "tiger": Size(4, 128, 8, 512)}


@dataclass(frozen=True)
class Settings:
    """Protocol, model and training."""

    protocol: Literal["log-split", "leave-one-out"] = "log-split"
    """Which events are predicted: each user's first of the test split, or each user's last."""
    size: Literal["small", "tiger"] = "small"
    """small, for a core or two: 1+1 layers, width 64, 4 heads, 256 hidden. tiger, as published: 4+4 layers, width 128,
    8 heads, 512 hidden."""
    history: int = 20
    """Items the model looks back on."""
    epochs: int = 8
    """Passes over all training events, at most."""
    patience: int = 2
    """Epochs without a better validation loss after which training stops; the best epoch's weights are kept."""
    validation_share: float = 0.05
    """Latest share of the events before the test split that stops the training; for log-split."""
    lr: float = 3e-3
    """Learning rate of Adam at the start; it falls linearly to 0 over all epochs."""
    dropout: float = 0.1
    """Dropout of the model."""
    batch_items: int = 256
    """Items of a training batch, padding included."""
    beam: int = 100
    """Beams of the search; metrics at larger cutoffs are left out."""
    token_weights: bool = False
    """Weigh every token's loss with the catalog's weight of it, where the catalog has weights."""
    seed: int = 0
    """Seed of everything random."""
    threads: int = 1
    """Threads. The same seed gives the same figures only with the same number of threads."""

    def check(self) -> None:
        """Raises ContractError naming the flag whose value makes no sense."""
        least_one = ("history", "epochs", "patience", "beam", "threads")
        rules = {name: (getattr(self, name) >= 1, "at least 1") for name in least_one}
        rules["validation_share"] = (0 < self.validation_share < 1, "a share between 0 and 1")
        rules["lr"] = (0 < self.lr < float("inf"), "a positive number")
        rules["dropout"] = (0 <= self.dropout < 1, "a share from 0 to below 1")
        rules["batch_items"] = (self.batch_items >= self.history, f"at least the history's {self.history}")
        rules["seed"] = (self.seed >= 0, "at least 0")
        for name, (fine, expected) in rules.items():
            if not fine:
                raise ContractError(f"--{name.replace('_', '-')}", expected, getattr(self, name))


# NAME.npz: the rank of each user's target, for paired comparisons of catalogs.


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


# NAME.json: settings, figures and conditions.

INSTRUMENT = 1  # to be raised when the same settings no longer give the same figures
NOT_OURS = "nothing there yet, or a result of this benchmark"


class Measured(TypedDict):
    """test: users and targets. training: the journal, and how many sequences there are of each part.

    seconds: wall and CPU time, of training and search. metrics: item, sid, popularity_item -> name -> mean over users.
    """

    test: dict[str, int | bool]
    training: dict[str, Any]
    parameters: int
    seconds: dict[str, dict[str, float]]
    metrics: dict[str, dict[str, float]]


class Result(Measured):
    """One run. catalog: path, fingerprint, items. log_sha256: of the log's manifest; results made earlier lack it."""

    settings_hash: str
    settings: dict[str, Any]
    catalog: dict[str, Any]
    data: str
    log_sha256: NotRequired[str]
    conditions: Conditions


def read_result(path: Path) -> Result | None:
    """The result in a file; None where there is no file. Raises ContractError for a file that is no result."""
    if not path.exists():
        return None
    result: Result = read_json(path, "a result of this benchmark")
    missing = sorted(Result.__required_keys__ - set(result)) if isinstance(result, dict) else ["everything"]
    if missing:
        raise ContractError(path, f"the keys {sorted(Result.__required_keys__)}", f"missing {missing}")
    return result


def settings_hash(settings: Settings, fingerprint: str, data: Path) -> str:
    """sha256 over settings, the catalog's fingerprint and the log's manifest."""
    return _sha256(json.dumps([INSTRUMENT, asdict(settings), fingerprint, _manifest(data)]))


def log_sha256(data: Path) -> str:
    """Names the log."""
    return _sha256(_manifest(data))


def _manifest(data: Path) -> str:
    return (data / LOG / MANIFEST).read_text()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def is_finished(out: Path, wanted: str) -> bool:
    """Whether `out` holds the result of these settings; one of others may be replaced.

    Raises ContractError where `out` is something else or cannot be written, so that this is known before training.
    """
    obstacle = unwritable(out.parent)
    if obstacle:
        raise ContractError("--out", "a file in a folder that can be written", obstacle)
    if out.suffix != ".json":
        raise ContractError("--out", "a file name that ends in .json", out.name)
    try:
        found = read_result(out)
    except (OSError, ContractError) as error:
        raise ContractError(out, NOT_OURS, error) from None
    return found is not None and found["settings_hash"] == wanted


def save(out: Path, result: Result, ranks: Ranks) -> None:
    """Writes the ranks, then `out`, each in one step: a JSON file never lies next to ranks of another run."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    save_ranks(out, ranks, result["settings_hash"])
    write_json(out, result)
