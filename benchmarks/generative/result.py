"""The JSON of a run: written whole, and found again by what decided its figures."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from benchmarks.generative.rank_file import Ranks, save_ranks
from benchmarks.generative.settings import Settings
from sidrec.io.files import read_json, write_json
from sidrec.machine import unwritable
from sidrec.schema import LOG, MANIFEST, ContractError
from sidrec.study.results import Conditions

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

    Raises ContractError where `out` is something else or cannot be written, so that nobody trains for nothing.
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
