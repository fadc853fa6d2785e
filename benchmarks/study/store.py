"""The committed side of a study: RESULTS/STUDY/DATASET/VARIANT/seedN.json, one file per finished run."""

import json
from pathlib import Path
from typing import TypedDict, TypeVar

from benchmarks.study.conditions import Conditions
from benchmarks.study.definition import Overrides
from benchmarks.study.runs import Run
from sidrec.metrics.exact import SplitMetrics
from sidrec.schema import ContractError
from sidrec.train.run_directory import write_json

T = TypeVar("T")

RESULTS = Path(__file__).parents[1] / "results"


class RunResult(TypedDict):
    """One finished run. finished: UTC. run: what the trainer noted.

    wall_seconds, cpu_seconds: of the command and its processes.
    """

    study: str
    dataset: str
    variant: str
    seed: int
    recipe_hash: str
    finished: str
    recipe: Overrides
    conditions: Conditions
    run: dict[str, object]
    wall_seconds: float
    cpu_seconds: float
    metrics: SplitMetrics


def result_path(results: Path, run: Run) -> Path:
    return results / run.study / run.dataset / run.variant / f"seed{run.seed}.json"


def save_result(results: Path, run: Run, result: RunResult) -> None:
    path = result_path(results, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


def load_result(results: Path, run: Run) -> RunResult | None:
    """The run's result; None when it has not finished. Raises ContractError when the file is not a result."""
    return read_result(result_path(results, run), RunResult)


def read_result(path: Path, kind: type[T]) -> T | None:
    """What is in the file, a TypedDict of `kind`; None when there is none. Raises ContractError when it is another."""
    if not path.exists():
        return None
    try:
        result: T = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ContractError(path, "valid JSON", error) from None
    wanted: frozenset[str] = kind.__required_keys__  # type: ignore[attr-defined]  # every TypedDict has them
    missing = sorted(wanted - set(result)) if isinstance(result, dict) else ["everything"]
    if missing:
        raise ContractError(path, f"the keys {sorted(wanted)}", f"missing {missing}")
    return result


def finished(results: Path, runs: list[Run]) -> dict[str, dict[str, list[RunResult]]]:
    """Data set -> variant -> results in the order of the seeds, of runs whose result fits their recipe."""
    found: dict[str, dict[str, list[RunResult]]] = {}
    for run in runs:
        result = load_result(results, run)
        if result is not None and result["recipe_hash"] == run.recipe_hash:
            found.setdefault(run.dataset, {}).setdefault(run.variant, []).append(result)
    return found
