"""The run directory: all files of a run, and its lock.

config.yaml            the resolved recipe          catalog_fingerprint    the catalog that the SIDs come from
id_maps.json           digests of the log's id maps evaluations/NAME/      scores of other data folders
plan.json              which rank holds which table checkpoints/step-N/    model, optimizer, position
metrics.jsonl          training, a line per log     metrics.json           split -> slice -> metric
ledger/                the rows of each step, with train.row_ledger
skipped.jsonl          skipped steps, with train.non_finite=skip
evaluations.jsonl      evaluations during training  tracking.json          ids of this run at trackers
warnings.txt           warnings that were printed   predictions_SPLIT.parquet, attention_, gate_SPLIT.json
run.json               versions, device, parameters tensorboard/           the curves of metrics.jsonl
"""

import re
from dataclasses import replace
from pathlib import Path

from sidrec.config import ConfigError, Recipe, load_saved, save
from sidrec.io.files import replaced_file
from sidrec.io.output_folders import FolderKind, Written
from sidrec.io.output_lock import OutputLock
from sidrec.machine import unwritable
from sidrec.schema import ContractError, read_json
from sidrec.text import near_folder, quoted

EVALUATIONS = "evaluations"  # folder of a run directory: results on other data folders
EVALUATION = "evaluation.json"  # in each: which run, checkpoint, data and catalog

_FILE = (
    r"(config\.yaml|(run|plan|metrics|id_maps|tracking)\.json|(metrics|skipped|evaluations)\.jsonl|catalog_fingerprint|warnings\.txt|hang-rank-\d+\.(txt|json)"
    r"|predictions_[^/]+\.parquet|report\.html|(attention|gate)_[^/]+\.json|gate_[^/]+\.png)"
)


_PARTIAL = rf"(config|nonce-[0-9a-f]+(\.partial)?|{_FILE})\.partial\d*"
"""Unfinished files, and the nonce of `check_shared_folder` (`sidrec.preflight.run_checks`)."""


_FOLDERS = (
    r"wandb/.+|tensorboard/events\.out\.tfevents\.[^/]+|ledger/steps-[^/]+\.(parquet|partial)|checkpoints/best\.(json(\.partial)?|partial)"
    r"|checkpoints/step-\d+(\.partial|\.damaged(-\d+)?)?/"
    r"(rank-\d+\.safetensors|(index|position|plan)\.json|index\.json\.partial|config\.yaml)"
    rf"|{EVALUATIONS}/[^/]+/({EVALUATION}|{_FILE})"
)
"""Names of the files that training and evaluation write."""


PRECAUTIONS = ("track", "preflight", "non_finite", "skip_at_most", "hang_minutes")
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
        self.warnings = path / "warnings.txt"
        self.evaluations = path / "evaluations.jsonl"
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

        `parallel`, `checkpoint`, `data.workers` and PRECAUTIONS may differ from those of the run that is here. Raises
        ConfigError if another recipe's run is here, naming the sections that differ; for files that no run wrote and
        this one would replace; and for a directory that cannot be written.
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
            before = replace(before, data=replace(before.data, workers=recipe.data.workers))
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
            raise ConfigError(f"{quoted(self.path)}: expected a run directory with config.yaml, got none{near}")
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
