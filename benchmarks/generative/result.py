"""The JSON of a run: written whole, and found again by what decided its figures."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.generative.settings import Settings
from sidrec.machine import unwritable
from sidrec.schema import LOG, MANIFEST, ContractError
from sidrec.train.run_directory import write_json

INSTRUMENT = 1  # to be raised when the same settings no longer give the same figures
KEYS = {"settings_hash", "settings", "catalog", "data", "metrics"}


def settings_hash(settings: Settings, fingerprint: str, data: Path) -> str:
    """sha256 over settings, the catalog's fingerprint and the log's manifest."""
    manifest = (data / LOG / MANIFEST).read_text()
    return hashlib.sha256(json.dumps([INSTRUMENT, asdict(settings), fingerprint, manifest]).encode()).hexdigest()


def is_finished(out: Path, wanted: str) -> bool:
    """Whether `out` holds the result of these settings; one of others may be replaced.

    Raises ContractError where `out` is something else or cannot be written, so that nobody trains for nothing.
    """
    obstacle = unwritable(out.parent)
    if obstacle:
        raise ContractError("--out", "a file in a folder that can be written", obstacle)
    if not out.exists():
        return False
    try:
        found = json.loads(out.read_text())
    except (OSError, ValueError) as error:
        raise ContractError(out, "nothing there yet, or a result of this benchmark", error) from None
    if not isinstance(found, dict) or not set(found) >= KEYS:
        raise ContractError(out, "nothing there yet, or a result of this benchmark", "another file")
    return bool(found["settings_hash"] == wanted)


def save(out: Path, result: dict[str, object]) -> None:
    """Writes the result in one step."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
