"""Trains the runs of a study that have no recorded result yet, each in a process of its own."""

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, TypeVar

import yaml

from sidrec.io.files import read_json, write_text
from sidrec.io.output_folders import check_replaceable
from sidrec.metrics.exact import METRICS_FILE, load_metrics
from sidrec.study.definition import Study
from sidrec.study.draws import record_draws
from sidrec.study.jobs import Run, study_runs
from sidrec.study.results import GATES, RunResult, conditions, run_results
from sidrec.train.progress import median_step_seconds
from sidrec.train.run_directory import RUN, RunDirectory

Job = TypeVar("Job")

GRACE = 30.0  # seconds for a launcher to stop its ranks

log = logging.getLogger(__name__)


class RunError(RuntimeError):
    """A run that wrote no metrics. The message has its exit status and the end of its output."""


def run_study(study: Study, results: Path) -> list[Run]:
    """Trains the runs that are not finished. Returns those that failed.

    A run is finished when a result of the same recipe is recorded under `results`. Raises as `check_recipes` before
    the first training.
    """
    runs = check_recipes(study)
    recorded = run_results(results, study)

    def is_finished(run: Run) -> bool:
        result = recorded.get(*run.key)
        return result is not None and result["recipe_hash"] == run.recipe_hash

    def train(run: Run) -> None:
        if recorded.get(*run.key) is not None:
            log.info("%s: the recipe has changed since it was trained, training again", run)
        result = _train(study, run)
        record_draws(study, results, run)  # first, so that every recorded run has its draws
        recorded.put(result)

    return do_missing(study.name, runs, is_finished, train, (OSError, ValueError, RunError))


def check_recipes(study: Study) -> list[Run]:
    """The runs of the study. Raises ConfigError if any of their recipes has a mistake."""
    runs = study_runs(study)
    for run in runs:
        run.checked()
    return runs


def _train(study: Study, run: Run) -> RunResult:
    recipe, output = run.directory.with_suffix(".yaml"), run.directory.with_suffix(".log")
    _prepare(run, recipe)
    facts = conditions()  # before training: the commit may move on meanwhile
    template = command_of(study)
    command = [word.replace("{recipe}", str(recipe)).replace("{ranks}", str(study.ranks)) for word in template]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    status = _call(command, output)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if status or not (run.directory / METRICS_FILE).exists():
        tail = "\n".join(output.read_text(errors="replace").splitlines()[-25:])
        raise RunError(f"exit status {status}, output in {output}, which ends\n{tail}")
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
        conditions=facts | {"ranks": study.ranks, "command": " ".join(template)},
        facts=found,
        wall_seconds=round(wall, 2),
        cpu_seconds=round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        metrics=load_metrics(run.directory / METRICS_FILE),
        **_cost(run, found),
    )


def command_of(study: Study) -> tuple[str, ...]:
    """The command that trains one recipe, with {recipe} and {ranks} to fill in."""
    if study.command is not None:
        return study.command
    launcher = ("torchrun", "--standalone", "--nproc-per-node", "{ranks}", "-m", "sidrec.train")
    return (*(launcher if study.ranks > 1 else ("sidrec", "train")), "{recipe}")


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


def _call(command: list[str], output: Path) -> int:
    """Runs the command and returns its exit status. Stops the command when this process is stopped."""
    with output.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
        )
    try:
        return process.wait()
    except BaseException:
        # The launcher stops its ranks, which may run in sessions of their own that killpg does not reach.
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise


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


def _trainer_facts(run: Run) -> dict[str, object]:
    """Facts that the trainer recorded in run.json, the catalog's fingerprint, and the gate's direction by split."""
    directory = RunDirectory(run.directory)
    facts = json.loads(directory.facts.read_text(encoding="utf-8")) if directory.facts.exists() else {}
    catalog = (
        {"catalog": directory.fingerprint.read_text(encoding="utf-8").strip()} if directory.fingerprint.exists() else {}
    )
    gates = {
        path.stem.removeprefix("gate_"): read_json(path, "a gate by exposure")["spearman_of_deciles"]
        for path in sorted(run.directory.glob("gate_*.json"))
    }
    return {**facts, **catalog, **({GATES: gates} if gates else {})}


def _environment() -> dict[str, str]:
    """This environment, with torchx and torchrun of this Python's own environment first in PATH."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def do_missing(
    title: str,
    jobs: Sequence[Job],
    is_finished: Callable[[Job], bool],
    do: Callable[[Job], None],
    failures: tuple[type[Exception], ...],
) -> list[Job]:
    """Does the jobs that are not finished, one after the other. Returns those that failed; the log names str(job).

    is_finished: asked again before a job begins, because another process may have done it.
    do: does one job and records its result. failures: exceptions of a failed job; any other ends the loop.
    """
    waiting = [job for job in jobs if not is_finished(job)]
    log.info("%s: %d runs, %d of them finished", title, len(jobs), len(jobs) - len(waiting))
    failed: list[Job] = []
    started = time.monotonic()
    for done, job in enumerate(waiting):
        if is_finished(job):
            continue
        begun = time.monotonic()
        eta = f", ETA {_minutes((begun - started) / done * (len(waiting) - done))}" if done else ""
        log.info("%d/%d %s%s", done + 1, len(waiting), job, eta)
        try:
            do(job)
        except failures as error:
            failed.append(job)
            log.error("%s failed: %s", job, error)
            continue
        log.info("%s finished after %s", job, _minutes(time.monotonic() - begun))
    if failed:
        log.error("%d of %d runs failed: %s", len(failed), len(waiting), ", ".join(map(str, failed)))
    return failed


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
