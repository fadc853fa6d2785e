"""The catalogs that a study fits: once each, for all variants and studies with the same tokenizer and data.

WORK/catalogs/DATASET/HASH/fitN is the catalog of seed N; HASH is of the tokenizer section and the data folder. Next to
it: fitN.yaml, the recipe of `sidrec fit`; fitN.log, its output; fitN.json, the items that it was fitted on.
"""

import logging
import threading
from pathlib import Path
from typing import Any

import yaml

from sidrec.errors import TrainingError
from sidrec.io.files import read_json, write_json, write_text
from sidrec.io.output_lock import locked
from sidrec.io.places import StoreFile, StorePath, place
from sidrec.schema import ITEMS
from sidrec.sid.catalog import CARD
from sidrec.study.jobs import Run
from sidrec.study.processes import Processes
from sidrec.study.schedule import duration_text

PATIENCE = 24 * 3600.0  # seconds to wait for another study that fits the same catalog
TAIL = 25  # lines of a log that an error shows

log = logging.getLogger(__name__)


class RunError(TrainingError):
    """A run, or the fit of its catalog, that failed. The message has its exit status and the end of its output."""


class Catalogs:
    """Fits the catalogs of runs, each once; other threads and processes that need it wait."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._lock = threading.Lock()
        self._locks: dict[Path, threading.Lock] = {}
        self._failed: dict[Path, str] = {}

    def ensure(self, run: Run) -> None:
        """Fits the run's catalog unless it is there. Raises RunError, also for later runs on a catalog that failed."""
        if run.fit is None:
            return
        catalog = Path(run.recipe["data"]["catalog"])
        with self._lock:
            lock = self._locks.setdefault(catalog, threading.Lock())
        with lock:
            if message := self._failed.get(catalog):
                raise RunError(message)
            catalog.parent.mkdir(parents=True, exist_ok=True)
            with locked(catalog.with_suffix(".log"), patience=PATIENCE):
                if not _is_current(catalog, run):
                    self._fit(catalog, run)

    def _fit(self, catalog: Path, run: Run) -> None:
        section = run.recipe["tokenizer"]
        recipe = {"name": run.dataset, "data": {"path": run.recipe["data"]["path"], "catalog": str(catalog)}}
        path, output = catalog.with_suffix(".yaml"), catalog.with_suffix(".log")
        write_text(path, yaml.safe_dump({**recipe, "tokenizer": section}, sort_keys=False))
        inputs = _inputs(run)  # before the fit: the items may change meanwhile
        log.info("%s: fitting %s", run, catalog)
        status, cpu_seconds = self._processes.sidrec(["fit", str(path), "--overwrite"], output)
        if status or not (catalog / CARD).exists():
            self._failed[catalog] = f"no catalog: {ended_text(status, output)}"
            raise RunError(self._failed[catalog])
        write_json(catalog.with_suffix(".json"), inputs)
        log.info("%s fitted in %s of CPU time", catalog, duration_text(cpu_seconds))


def ended_text(status: int, output: Path) -> str:
    """How a command ended, with the end of its output."""
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    tail = "\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
    return f"{how}, output in {output}, which ends\n{tail}"


def _is_current(catalog: Path, run: Run) -> bool:
    """Whether the catalog is there and was fitted on the items that are there now."""
    facts = catalog.with_suffix(".json")
    if not (catalog / CARD).exists() or not facts.exists():
        return False
    if read_json(facts, "the inputs of a fit") == _inputs(run):
        return True
    log.warning("%s: the items have changed since it was fitted, fitting again", catalog)
    return False


def _inputs(run: Run) -> dict[str, Any]:
    """Size and time, or version, of items.parquet, which change when the data is prepared again."""
    items = place(run.recipe["data"]["path"]) / ITEMS
    if not items.exists():
        return {}
    if isinstance(items, StorePath):
        with StoreFile(items) as stored:
            return {"items_bytes": stored.size, "items_changed": stored.version}
    found = items.stat()
    return {"items_bytes": found.st_size, "items_changed": found.st_mtime_ns}
