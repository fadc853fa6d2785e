"""Trackers: where scalars and histograms of a run go besides its own files. TensorBoard always; MLflow and W&B on wish.

A tracker that fails is left out from then on, after one warning; no tracker ends a training. All run on rank 0.

Shapes: N rows of a split.
"""

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sidrec.config import Recipe
from sidrec.errors import print_warning
from sidrec.io.files import read_json, write_json
from sidrec.metrics.exact import QUALITY, SliceMetrics
from sidrec.train.run_directory import RunDirectory

BINS = 20
"""Equal bins of [0, 1] of every histogram: of gate values and attention weights."""


PARAMS = 100  # of a request to MLflow, at most


class Tracker(Protocol):
    """One place that values go to. Methods may raise anything."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds one point to each series."""

    def histograms(self, counts: Mapping[str, Sequence[int]], step: int) -> None:
        """Adds a histogram over BINS bins to each series."""

    def close(self) -> None:
        """Writes what is not written yet."""


class TensorBoard:
    """Event files in the run directory's tensorboard/."""

    def __init__(self, run: RunDirectory, recipe: Recipe, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(run.tensorboard), purge_step=done)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def histograms(self, counts: Mapping[str, Sequence[int]], step: int) -> None:
        edges = np.linspace(0, 1, BINS + 1)
        middles = (edges[1:] + edges[:-1]) / 2
        for name, of_bins in counts.items():
            self._writer.add_histogram_raw(
                name,
                min=0.0,
                max=1.0,
                num=int(np.sum(of_bins)),
                sum=float(np.dot(of_bins, middles)),
                sum_squares=float(np.dot(of_bins, middles**2)),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=list(of_bins),
                global_step=step,
            )

    def close(self) -> None:
        self._writer.close()


class Mlflow:
    """A run of the experiment NAME at MLFLOW_TRACKING_URI, else in RUNS/mlflow. Histograms are left out."""

    def __init__(self, run: RunDirectory, recipe: Recipe, done: int, module: Any = None) -> None:
        """module: in place of mlflow. A resumed run continues its MLflow run."""
        mlflow = module or importlib.import_module("mlflow")
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if address is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.7 and later prefer a database
            address = Path(os.path.realpath(recipe.train.runs), "mlflow").as_uri()
        self._entities = importlib.import_module("mlflow.entities") if module is None else module.entities
        self._client = mlflow.MlflowClient(tracking_uri=address)
        self._run = known_id(run, "mlflow", lambda: self._new_run(recipe))

    def _new_run(self, recipe: Recipe) -> str:
        experiment = self._client.get_experiment_by_name(recipe.name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(recipe.name)
        name: str = self._client.create_run(number, run_name=f"seed{recipe.seed}").info.run_id
        params = [self._entities.Param(key, value) for key, value in flat(asdict(recipe)).items()]
        for start in range(0, len(params), PARAMS):
            self._client.log_batch(name, params=params[start : start + PARAMS])
        return name

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        points = [self._entities.Metric(name, value, timestamp=0, step=step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=points)

    def histograms(self, counts: Mapping[str, Sequence[int]], step: int) -> None:
        """MLflow has none."""

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Wandb:
    """A run of the project NAME on Weights & Biases; WANDB_MODE=offline keeps it in the run directory's wandb/."""

    def __init__(self, run: RunDirectory, recipe: Recipe, done: int, module: Any = None) -> None:
        """module: in place of wandb. A resumed run continues its W&B run."""
        self._wandb = module or importlib.import_module("wandb")
        self._run = self._wandb.init(
            project=recipe.name,
            name=f"seed{recipe.seed}",
            id=known_id(run, "wandb", lambda: os.urandom(4).hex()),
            resume="allow",
            dir=str(run.path),
            config=flat(asdict(recipe)),
        )
        self._run.define_metric("*", step_metric="step")  # an evaluation may be of an earlier step, the best one

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def histograms(self, counts: Mapping[str, Sequence[int]], step: int) -> None:
        edges = np.linspace(0, 1, BINS + 1)
        made = {name: self._wandb.Histogram(np_histogram=(np.asarray(each), edges)) for name, each in counts.items()}
        self._run.log({**made, "step": step})

    def close(self) -> None:
        self._run.finish()


TRACKERS: Mapping[str, Callable[[RunDirectory, Recipe, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
    "wandb": Wandb,
}
"""Name in a recipe's `train.track` -> tracker."""


def known_id(run: RunDirectory, tracker: str, new: Callable[[], str]) -> str:
    """The tracker's id of this run, which tracking.json keeps for a resumed run."""
    path = run.path / "tracking.json"
    known = read_json(path, "ids of trackers") if path.exists() else {}
    if tracker not in known:
        known[tracker] = new()
        write_json(path, known)
    return str(known[tracker])


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Dotted keys -> values as text."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: str(value)}
    return found


class Tracking:
    """All trackers of a run; none before `open`, and none on other ranks than 0."""

    def __init__(self) -> None:
        self._trackers: dict[str, Tracker] = {}

    def open(self, recipe: Recipe, run: RunDirectory, done: int) -> None:
        """done: steps of the run so far."""
        for name in ("tensorboard", *recipe.train.track):
            try:
                self._trackers[name] = TRACKERS[name](run, recipe, done)
            except ModuleNotFoundError:
                print_warning(f"train.track: {name} is not installed (the extra {name}); this run goes on without it")
            except Exception as error:
                print_warning(f"train.track: {name} cannot start ({error}); this run goes on without it")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        self._each(lambda tracker: tracker.scalars(values, step))

    def evaluation(self, found: "Evaluation") -> None:
        """All values of an evaluation."""
        self.scalars(found.scalars(), found.step)
        self._each(lambda tracker: tracker.histograms(found.histograms(), found.step))

    def close(self) -> None:
        """Closes all trackers."""
        self._each(lambda tracker: tracker.close())
        self._trackers = {}

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as error:
                del self._trackers[name]
                print_warning(f"train.track: {name} failed ({error}); this run goes on without it")


# What an evaluation gives to trackers.


@dataclass(frozen=True)
class Evaluation:
    """A split scored by the model after `step` steps.

    gate_N, exposures_N: of each row whose item has a SID; None without. attention: as `AttentionMeter.result`.
    """

    split: str
    step: int
    metrics: SliceMetrics
    gate_N: NDArray[np.float32] | None = None
    exposures_N: NDArray[np.float32] | None = None
    attention: Mapping[str, Any] | None = None

    def scalars(self) -> dict[str, float]:
        """SPLIT/SLICE/METRIC where defined, SPLIT/gate/EXPOSURES and SPLIT/attention/GRANULARITY, both means."""
        found = {
            f"{self.split}/{name}/{metric}": float(value)
            for name, values in self.metrics.items()
            for metric in QUALITY
            if (value := values.get(metric)) is not None
        }
        found |= {f"{self.split}/gate/{bucket}": mean for bucket, mean in self.gate_by_exposure().items()}
        weights = self.attention["weights"] if self.attention else {}
        return found | {f"{self.split}/attention/{name}": float(weight) for name, weight in weights.items()}

    def histograms(self) -> dict[str, list[int]]:
        """SPLIT/gate of all rows, and SPLIT/attention/GRANULARITY of all item bags."""
        found = {}
        if self.gate_N is not None and len(self.gate_N):
            found[f"{self.split}/gate"] = np.histogram(self.gate_N, BINS, (0, 1))[0].tolist()
        counts = self.attention["histogram"] if self.attention else {}
        return found | {f"{self.split}/attention/{name}": list(bins) for name, bins in counts.items()}

    def gate_by_exposure(self) -> dict[str, float]:
        """Mean gate of rows by the exposures of their item so far: 0, 1-9, 10-99 and so on, where there are any."""
        if self.gate_N is None or self.exposures_N is None:
            return {}
        power_N = np.where(self.exposures_N < 1, -1, np.floor(np.log10(np.maximum(self.exposures_N, 1)))).astype(int)
        return {
            "0" if power < 0 else f"{10**power}-{10 ** (power + 1) - 1}": float(self.gate_N[power_N == power].mean())
            for power in np.unique(power_N).tolist()
        }

    def line(self) -> str:
        """The evaluation as a line of evaluations.jsonl."""
        gate, attention = self.gate_by_exposure(), self.attention
        return json.dumps(
            {
                "step": self.step,
                "split": self.split,
                "metrics": self.metrics,
                **({"gate_by_exposure": gate} if gate else {}),
                **({"attention": attention["weights"]} if attention else {}),
            }
        )


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """The lines of evaluations.jsonl; none if there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
