"""Trains the runs of a study that have no recorded result yet, each in a process of its own, some at a time."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

import yaml

from sidrec.config import ConfigError, Recipe
from sidrec.config.section import granularity_levels
from sidrec.io.files import read_json, write_text
from sidrec.io.output_folders import check_replaceable
from sidrec.metrics.exact import METRICS_FILE, load_metrics
from sidrec.study.catalogs import Catalogs, RunError, ended_text
from sidrec.study.definition import Study
from sidrec.study.draws import record_draws
from sidrec.study.jobs import Run, study_runs
from sidrec.study.processes import Ended, Processes
from sidrec.study.results import GATES, Conditions, RunResult, conditions, run_results
from sidrec.study.schedule import Durations, Kind, Schedule, duration_text
from sidrec.train.progress import median_step_seconds
from sidrec.train.run_directory import RUN, RunDirectory

ALONE = ("sidrec", "train", "{recipe}")

log = logging.getLogger(__name__)

Record = Callable[[Run, RunResult], None]
"""Records the result of a run that has ended. Then its predictions and checkpoints are removed."""

Failed = list[tuple[Run, str]]
"""Runs without a result, each with a message."""
LATE = "did not start: it would not have ended in time"


def run_study(study: Study, results: Path, deadline: float | None = None) -> list[Run]:
    """Trains the runs that are not finished, up to `study.jobs` at a time.

    A run is finished when a result of the same recipe is recorded under `results`. deadline: of time.monotonic(); no
    run starts that would end later. Returns the runs that failed. Raises as `check_recipes` before the first training.
    """
    runs = check_recipes(study)
    table = run_results(results, study)
    recorded = table.read()
    waiting = []
    for run in runs:
        result = recorded.get(run.key)
        if result is not None and result["recipe_hash"] != run.recipe_hash:
            log.info("%s: the recipe has changed since it was trained, training again", run)
        if result is None or result["recipe_hash"] != run.recipe_hash:
            waiting.append(run)
    log.info("%s: %d runs, %d of them finished", study.name, len(runs), len(runs) - len(waiting))
    seconds: dict[Kind, list[float]] = {}
    for result in recorded.values():
        seconds.setdefault((result["dataset"], result["variant"]), []).append(result["wall_seconds"])

    def record(run: Run, result: RunResult) -> None:
        record_draws(study, results, run)  # first, so that every recorded run has its draws
        table.put(result)

    failed = train_runs(study, waiting, record, Durations(seconds), deadline)
    return [run for run, message in failed if message != LATE]


def check_recipes(study: Study) -> list[Run]:
    """The runs of the study. Raises ConfigError if any of their recipes has a mistake."""
    runs = study_runs(study)
    seen: set[str] = set()
    for run in runs:
        name = f"{run.dataset}/{run.variant}"  # recipes of other numbers differ in seed and catalog alone
        if name not in seen:
            recipe = run.checked()
            if run.fit is not None:
                _check_levels(name, recipe)
        seen.add(name)
    return runs


def _check_levels(name: str, recipe: Recipe) -> None:
    """Raises ConfigError for granularities that the catalogs of this study will lack."""
    sids, levels = recipe.model.item.sids, recipe.tokenizer.levels
    for granularity in sids.granularities if sids is not None and sids.subwords is None else ():
        if granularity_levels(granularity)[-1] > levels:
            expected = f"granularities of the tokenizer's {levels} levels"
            raise ConfigError(f"{name}: model.item.granularities: expected {expected}, got {granularity}")


def train_runs(
    study: Study,
    runs: Sequence[Run],
    record: Record,
    durations: Durations | None = None,
    deadline: float | None = None,
) -> Failed:
    """Trains runs, up to `study.jobs` at a time, and records each when it ends. Fits the catalogs that they read.

    record: called in the run's thread. durations: of earlier runs, for the time left. deadline: of time.monotonic();
    runs that would end later do not start and are returned with the message LATE. An exception in this thread, as of
    Ctrl-C, stops all processes.
    """
    if not runs:
        return []
    facts = conditions()  # before training: the commit may move on meanwhile
    with Processes(warm=command_of(study) == ALONE) as processes:
        catalogs = Catalogs(processes)
        schedule = Schedule(runs, study.jobs, durations or Durations(), processes.stop, deadline)

        def do(run: Run) -> bool:
            catalogs.ensure(run)
            record(run, _train(study, run, processes, facts))
            if not study.keep:
                _remove_large_files(run)
            return True

        schedule.work(do, (OSError, ValueError, RunError))
    if schedule.failed:
        names = ", ".join(str(run) for run, _ in schedule.failed)
        log.error("%d of %d runs failed: %s", len(schedule.failed), len(runs), names)
    if schedule.late:
        seconds = sum(schedule.durations.expected(run) or 0.0 for run in schedule.late) / study.jobs
        log.info("%d runs did not start in time; they take about %s", len(schedule.late), duration_text(seconds))
    return schedule.failed + [(run, LATE) for run in schedule.late]


def _train(study: Study, run: Run, processes: Processes, facts: Conditions) -> RunResult:
    recipe, output = run.directory.with_suffix(".yaml"), run.directory.with_suffix(".log")
    _prepare(run, recipe)
    template = command_of(study)
    started = time.monotonic()
    status, cpu_seconds = _call(study, template, recipe, output, processes)
    wall = time.monotonic() - started
    if status or not (run.directory / METRICS_FILE).exists():
        raise RunError(ended_text(status, output))
    found = _trainer_facts(run)
    return RunResult(
        study=study.name,
        dataset=run.dataset,
        variant=run.variant,
        run=run.number,
        fit=run.fit,
        recipe_hash=run.recipe_hash,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=run.recipe,
        conditions=facts | {"ranks": study.ranks, "command": " ".join(template), "jobs": study.jobs},
        facts=found,
        wall_seconds=round(wall, 2),
        cpu_seconds=round(cpu_seconds, 2),
        metrics=load_metrics(run.directory / METRICS_FILE),
        **_cost(run, found),
    )


def _call(study: Study, template: Sequence[str], recipe: Path, output: Path, processes: Processes) -> Ended:
    if tuple(template) == ALONE:
        return processes.sidrec(["train", str(recipe)], output)
    words = [word.replace("{recipe}", str(recipe)).replace("{ranks}", str(study.ranks)) for word in template]
    return processes.command(words, output)


def command_of(study: Study) -> tuple[str, ...]:
    """The command that trains one recipe, with {recipe} and {ranks} to fill in."""
    if study.command is not None:
        return study.command
    if study.ranks == 1:
        return ALONE
    return "torchrun", "--standalone", "--nproc-per-node", "{ranks}", "-m", "sidrec.train", "{recipe}"


class _Cost(TypedDict):
    step_seconds: float | None
    table_parameters: int | None
    dense_parameters: int | None


def _cost(run: Run, facts: Mapping[str, object]) -> _Cost:
    """Time of a step, and parameters, as far as the trainer recorded them."""
    log, parameters = RunDirectory(run.directory).log, facts.get("parameters")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    counts: Mapping[str, int] = parameters if isinstance(parameters, dict) else {}
    tables = counts["item_parameters"] + counts["context_parameters"] if counts else None
    step = median_step_seconds(lines, run.checked().data.batch_size)
    return _Cost(step_seconds=step, table_parameters=tables, dense_parameters=counts.get("dense_parameters"))


def _prepare(run: Run, recipe: Path) -> None:
    """Writes the recipe. Keeps the run directory of an interrupted run of this recipe, removes any other."""
    text = yaml.safe_dump(run.recipe, sort_keys=False)
    interrupted = (
        recipe.exists() and recipe.read_text(encoding="utf-8") == text and not (run.directory / METRICS_FILE).exists()
    )
    if run.directory.exists() and not interrupted:
        check_replaceable(run.directory.resolve(), RUN)
        log.info("%s: removing %s, which is of another recipe or has no result on record", run, run.directory)
        shutil.rmtree(run.directory)
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_text(recipe, text)


def _remove_large_files(run: Run) -> None:
    """Removes the predictions and checkpoints of a recorded run; logs, recipe and metrics stay."""
    for path in run.directory.glob("predictions_*.parquet"):
        path.unlink()
    for checkpoint in RunDirectory(run.directory).checkpoints.glob("*"):
        shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()


def _trainer_facts(run: Run) -> dict[str, object]:
    """Facts that the trainer recorded in run.json, the catalog's fingerprint, and the gate by split."""
    directory = RunDirectory(run.directory)
    facts = json.loads(directory.facts.read_text(encoding="utf-8")) if directory.facts.exists() else {}
    catalog = (
        {"catalog": directory.fingerprint.read_text(encoding="utf-8").strip()} if directory.fingerprint.exists() else {}
    )
    gates = {
        path.stem.removeprefix("gate_"): read_json(path, "a gate by exposure")
        for path in sorted(run.directory.glob("gate_*.json"))
    }
    return {**facts, **catalog, **({GATES: gates} if gates else {})}
