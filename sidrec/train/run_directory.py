"""The run directory: all files of a run, its lock, and the training log.

config.yaml            the resolved recipe          catalog_fingerprint    the catalog that the SIDs come from
id_maps.json           digests of the log's id maps evaluations/NAME/      scores of other data folders
plan.json              which rank holds which table checkpoints/step-N/    model, optimizer, position
metrics.jsonl          training, a line per log     metrics.json           split -> slice -> metric
ledger/                the rows of each step, with train.row_ledger
skipped.jsonl          skipped steps, with train.non_finite=skip
run.json               versions, device, parameters tensorboard/           the curves of metrics.jsonl
"""

import json
import math
import re
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from sidrec.config import ConfigError, Recipe, load_saved, save
from sidrec.io.files import replaced_file, write_text
from sidrec.io.output_folders import FolderKind, Written
from sidrec.io.output_lock import OutputLock
from sidrec.machine import unwritable
from sidrec.schema import ContractError, read_json
from sidrec.text import near_folder
from sidrec.train.step import Skipped, places_text

_FILE = (
    r"(config\.yaml|(run|plan|metrics|id_maps)\.json|(metrics|skipped)\.jsonl|catalog_fingerprint|hang-rank-\d+\.txt"
    r"|predictions_[^/]+\.parquet|(attention|gate)_[^/]+\.json|gate_[^/]+\.png)"
)


_PARTIAL = rf"(config|{_FILE})\.partial\d*"


_FOLDERS = (
    r"tensorboard/events\.out\.tfevents\.[^/]+|ledger/steps-[^/]+\.(parquet|partial)|checkpoints/best\.(json(\.partial)?|partial)"
    r"|checkpoints/step-\d+(\.partial|\.damaged(-\d+)?)?/"
    r"(rank-\d+\.safetensors|(index|position|plan)\.json|index\.json\.partial|config\.yaml)"
)
"""Names of the files that training and evaluation write."""


PRECAUTIONS = ("preflight", "non_finite", "skip_at_most", "hang_minutes")
"""Keys of `train` that may change when a run is resumed."""


def _written(folder: Path) -> Written | None:
    begun = (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()
    written = re.compile(rf"{_FILE}|{_PARTIAL}|{_FOLDERS}")
    return (lambda name: bool(written.fullmatch(name))) if begun or _is_run_json(folder / "run.json") else None


RUN = FolderKind("a run directory", _written)


def _is_run_json(path: Path) -> bool:
    """Whether a file is the run.json of a run."""
    try:
        facts = read_json(path, "the facts of a run")
    except ContractError:
        return False
    return isinstance(facts, dict) and {"torch", "torchrec", "ranks"} <= set(facts)


class RunDirectory:
    """The files of one run, and its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.plan = path / "plan.json"
        self.log = path / "metrics.jsonl"
        self.skipped = path / "skipped.jsonl"
        self.metrics = path / "metrics.json"
        self.facts = path / "run.json"
        self.fingerprint = path / "catalog_fingerprint"
        self.id_maps = path / "id_maps.json"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.ledger = path / "ledger"
        self.lock = RunLock(path)

    def predictions(self, split: str) -> Path:
        return self.path / f"predictions_{split}.parquet"

    def check(self, recipe: Recipe) -> None:
        """Checks that this recipe may run here; writes nothing.

        `parallel`, `checkpoint` and PRECAUTIONS may differ from the run that is here. Raises ConfigError if another
        recipe's run is here, naming the sections that differ; for files that no run wrote and this one would replace;
        and for a directory that cannot be written.
        """
        taken = [] if self.config.exists() or _is_run_json(self.facts) else self._taken()
        if taken:
            raise ConfigError(
                f"{self.path}: expected a folder without files of a run's names, or a run of this recipe, got "
                f"{', '.join(taken[:3])} that no run wrote; give this run another name or move them away"
            )
        if self.config.exists():
            before = replace(load_saved(self.config), parallel=recipe.parallel, checkpoint=recipe.checkpoint)
            precautions = {name: getattr(recipe.train, name) for name in PRECAUTIONS}
            before = replace(before, train=replace(before.train, **precautions))
            if before != recipe:
                differing = [s for s in Recipe.__dataclass_fields__ if getattr(before, s) != getattr(recipe, s)]
                raise ConfigError(
                    f"{self.path}: expected a run of this recipe, got one that differs in {', '.join(differing)}; "
                    "give this one another name or seed, or remove that directory"
                )
        obstacle = unwritable(self.path)
        if obstacle:
            raise ConfigError(f"train.runs: expected a folder that can be written, got {obstacle}")

    def _taken(self) -> list[str]:
        """Files that a run would replace; not catalog_fingerprint, which a run that failed at its start may leave."""
        names = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        return [name for name in names if re.fullmatch(_FILE, name) and name != self.fingerprint.name]

    def attention(self, split: str) -> Path:
        return self.path / f"attention_{split}.json"

    def begin(self, recipe: Recipe) -> None:
        """Makes the directory, locks it, writes config.yaml and removes the partial files of killed processes.

        Raises ConfigError as `check` and `RunLock.take` do.
        """
        self.check(recipe)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        for partial in self.path.glob("*.partial*"):
            if re.fullmatch(_PARTIAL, partial.name):
                partial.unlink()
        if not self.config.exists() or load_saved(self.config) != recipe:
            with replaced_file(self.config) as partial:
                save(recipe, partial)

    def give_up(self) -> None:
        """Removes config.yaml if there is no checkpoint, so that a corrected recipe can run here."""
        if not any(self.checkpoints.glob("step-*")):
            self.config.unlink(missing_ok=True)

    def recipe(self) -> Recipe:
        """The recipe of the run; warns of keys without effect. Raises ConfigError if there is none."""
        if not self.config.is_file():
            near = near_folder(self.path, self.config.name)
            raise ConfigError(f"{self.path}: expected a run directory with config.yaml, got none{near}")
        return load_saved(self.config, warn=True)


PATIENCE = 10.0  # seconds in which ranks end whose torchrun was killed


class RunLock(OutputLock):
    """A lock on a run directory: a second training would remove files that the first one is writing.

    The lock is on the directory itself, and leaves no file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, in_place=True)
        self._path = path

    def take(self, patience: float = PATIENCE) -> None:
        """Takes the lock if the directory exists. patience: seconds to wait for a process that is ending.

        Raises ConfigError if another process still has it then.
        """
        try:
            super().take(patience)
        except ContractError:
            expected = "expected a run that no other process trains, got one that is held"
            raise ConfigError(f"{self._path}: {expected}") from None


class Progress:
    """The log of a training: printed lines with loss, speed and ETA, metrics.jsonl and TensorBoard. On rank 0 only."""

    def __init__(self, run: RunDirectory, done: int, steps: int) -> None:
        """done: steps of the run so far; lines of later steps, from a process that was killed, are dropped."""
        self.steps = steps
        self.started = self.last = time.monotonic()
        self.first = done
        self.rows = 0.0
        for log in (run.log, run.skipped):
            _drop_after(log, done)
        self.log = run.log.open("a", encoding="utf-8")
        self.skipped_log = run.skipped
        self.skipped = len(run.skipped.read_text(encoding="utf-8").splitlines()) if run.skipped.exists() else 0
        self.tensorboard = SummaryWriter(str(run.tensorboard), purge_step=done)

    def count(self, rows: float, skipped: Skipped | None) -> None:
        """Adds a step. rows: over all ranks. skipped: None if the step was applied."""
        self.rows += rows
        if skipped is None:
            return
        self.skipped += 1
        places = f"; {places_text(skipped.rows)}" if skipped.rows else ""
        print(f"step {skipped.step} left out: {skipped.what}{places}", flush=True)
        rows_by_file = {str(path): numbers for path, numbers in skipped.rows.items()}
        with self.skipped_log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": skipped.step, "what": skipped.what, "rows": rows_by_file}) + "\n")

    def report(self, step: int, epoch: int, terms: dict[str, float], lr_factor: float) -> None:
        """Reports the steps since the last report. terms: `loss` and its parts by name, means over all rows; empty if
        all these steps were skipped."""
        now = time.monotonic()
        speed = self.rows / max(1e-9, now - self.last)
        left = (now - self.started) / max(1, step - self.first) * (self.steps - step)
        eta = timedelta(seconds=round(left))
        print(
            f"step {step}/{self.steps}  epoch {epoch + 1}  loss {terms.get('loss', math.nan):.5f}  "
            f"{speed:,.0f} samples/s  ETA {eta}{f'  {self.skipped} left out' if self.skipped else ''}",
            flush=True,
        )
        line = {
            "step": step,
            "epoch": epoch,
            **terms,
            "lr_factor": lr_factor,
            "samples_per_second": round(speed, 1),
            **({"skipped": self.skipped} if self.skipped else {}),
        }
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()
        for name in (*terms, "lr_factor", "samples_per_second"):
            self.tensorboard.add_scalar(f"train/{name}", line[name], step)
        self.last, self.rows = now, 0.0

    def close(self) -> None:
        """Closes the logs; prints how many steps of the run were skipped, if any."""
        if self.skipped:
            print(f"{self.skipped} of {self.steps} steps were left out: {self.skipped_log}", flush=True)
        self.log.close()
        self.tensorboard.close()


def _drop_after(log: Path, step: int) -> None:
    if log.exists():
        kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_text(log, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):  # the process died in the middle of this line
        return float("inf")
