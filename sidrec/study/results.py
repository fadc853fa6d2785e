"""Recorded results of runs: RESULTS/STUDY/runs.parquet, one row per finished run, and the conditions they name.

`ResultTable` keeps one TypedDict per row: text and numbers are columns of their type, everything else is JSON text in
a string column, so that a row reads back equal. A row is replaced in one step, under a lock, so
that several processes can record results in the same file.
"""

import fcntl
import functools
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, cast, get_type_hints

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sidrec.io.files import readable, replaced_file
from sidrec.metrics.exact import SplitMetrics
from sidrec.schema import ContractError
from sidrec.study.definition import Overrides, Study
from sidrec.study.jobs import Run

T = TypeVar("T")

RUNS_FILE = "runs.parquet"
GATES = "gate_by_exposure"
"""Key of `RunResult.facts`: split -> what gate_<split>.json has. Earlier versions recorded its correlation alone."""
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "numpy", "faiss-cpu")
COLUMN_TYPES: Mapping[object, pa.DataType] = {
    **{str: pa.string(), int: pa.int64(), float: pa.float64(), bytes: pa.binary()},
    **{int | None: pa.int64(), float | None: pa.float64()},
}

Conditions = dict[str, str | int | float | dict[str, str]]


class RunResult(TypedDict):
    """One finished run.

    run, fit: the numbers of the run and of the catalog fit; fit is None where the study fitted no catalog for it.
    finished: UTC. facts: what the trainer recorded in run.json. wall_seconds, cpu_seconds: of the whole training.
    step_seconds: median wall time of a training step. table_parameters: of all embedding tables, dense_parameters: of
    all other trained parameters. These three are None in results of earlier versions.
    """

    study: str
    dataset: str
    variant: str
    run: int
    fit: int | None
    recipe_hash: str
    finished: str
    recipe: Overrides
    conditions: Conditions
    facts: dict[str, object]
    wall_seconds: float
    cpu_seconds: float
    step_seconds: float | None
    table_parameters: int | None
    dense_parameters: int | None
    metrics: SplitMetrics


def run_results(results: Path, study: Study) -> "ResultTable[RunResult]":
    """The recorded runs of a study, by data set, variant and run number."""
    return run_table(results / study.name / RUNS_FILE)


def run_table(path: Path) -> "ResultTable[RunResult]":
    """Recorded runs, by data set, variant and run number."""
    return ResultTable(path, ("dataset", "variant", "run"), RunResult, _with_run_numbers)


def _with_run_numbers(table: pa.Table) -> pa.Table:
    """Results of earlier versions, whose column `run` had the trainer's facts, in today's columns."""
    if "seed" not in table.column_names or "facts" in table.column_names:
        return table
    former = {"run": "facts", "seed": "run"}
    table = table.rename_columns([former.get(name, name) for name in table.column_names])
    added = ("fit", "step_seconds", "table_parameters", "dense_parameters")
    for name in added:
        table = table.append_column(name, pa.nulls(len(table)))
    return table


def finished(results: Path, study: Study, runs: Sequence[Run]) -> dict[str, dict[str, list[RunResult]]]:
    """Data set -> variant -> results in the order of `runs`, of runs whose result is of the same recipe."""
    recorded = run_results(results, study).read()
    found: dict[str, dict[str, list[RunResult]]] = {}
    for run in runs:
        result = recorded.get(run.key)
        if result is not None and result["recipe_hash"] == run.recipe_hash:
            found.setdefault(run.dataset, {}).setdefault(run.variant, []).append(result)
    return found


class ResultTable(Generic[T]):
    """A Parquet file of results, one row for each value of its key columns.

    kind: the TypedDict that a row holds. keys: the fields that identify a row. upgrade: gives the columns of an earlier
    version's file today's names.
    """

    def __init__(
        self,
        path: Path,
        keys: tuple[str, ...],
        kind: type[T],
        upgrade: Callable[[pa.Table], pa.Table] = lambda table: table,
    ) -> None:
        self.path = path
        self.keys = keys
        self._upgrade = upgrade
        self.types: dict[str, pa.DataType | None] = {
            name: COLUMN_TYPES.get(annotation) for name, annotation in get_type_hints(kind).items()
        }

    def read(self) -> dict[tuple[object, ...], T]:
        """Key -> result; empty where there is no file. Raises ContractError for a file of other columns."""
        table = self._table()
        if table is None:
            return {}
        results = [self._result(row) for row in table.to_pylist()]
        return {self._key(result): result for result in results}

    def get(self, *key: object) -> T | None:
        """The result of that key, None where there is none."""
        return self.read().get(key)

    def put(self, result: T) -> None:
        """Adds the result, or replaces the one with the same key. Other rows are copied as they are."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        row = pa.table({name: self._column(result, name, kind) for name, kind in self.types.items()})
        with _locked(self.path.parent):
            table = self._table()
            if table is not None:
                same = [pc.equal(table[key], row[key][0]) for key in self.keys]
                row = pa.concat_tables([table.filter(pc.invert(functools.reduce(pc.and_, same))), row])
            with replaced_file(self.path) as partial:
                pq.write_table(row, partial, compression="zstd")

    def _table(self) -> pa.Table | None:
        """The file's columns with the types of this version."""
        if not self.path.exists():
            return None
        with readable(self.path):
            table = self._upgrade(pq.read_table(self.path))
        missing = sorted(set(self.types) - set(table.column_names))
        if missing:
            raise ContractError(self.path, f"the columns {sorted(self.types)}", f"missing {missing}")
        return table.select(list(self.types)).cast(
            pa.schema([(name, kind or pa.string()) for name, kind in self.types.items()])
        )

    def _column(self, result: Any, name: str, kind: pa.DataType | None) -> pa.Array:
        return pa.array([self._cell(result[name], kind)], kind or pa.string())

    def _key(self, result: Any) -> tuple[object, ...]:
        return tuple(result[key] for key in self.keys)

    def _cell(self, value: Any, kind: pa.DataType | None) -> Any:
        return json.dumps(value, allow_nan=False) if kind is None else value

    def _result(self, row: Mapping[str, Any]) -> T:
        result: Any = {}
        for name, kind in self.types.items():
            try:
                result[name] = json.loads(row[name]) if kind is None else row[name]
            except (TypeError, ValueError) as error:
                raise ContractError(f"{self.path}: column {name}", "JSON text", error) from None
        return cast(T, result)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time replace files of the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def conditions(checkout: Path = Path(__file__).parents[2]) -> Conditions:
    """The commit, hardware and versions that a figure of this process is measured with. memory_gib: of the machine.

    checkout: the repository whose commit is named.
    """
    return {
        "commit": _commit(checkout),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": _versions(),
    }


def _commit(root: Path) -> str:
    """The commit's hash, with "-dirty" where tracked files differ; "unknown" outside a checkout.

    Changes under benchmarks/results do not count: a study rewrites its tables while the next one measures.
    """
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=folder).stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
