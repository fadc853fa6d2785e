"""Trains the runs of a study that are not finished yet, each in a process of its own."""

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import yaml

from benchmarks.study.conditions import conditions
from benchmarks.study.definition import Study
from benchmarks.study.missing import do_missing
from benchmarks.study.runs import Run, study_runs
from benchmarks.study.store import RunResult, load_result, save_result
from sidrec.io.output_folders import check_replaceable
from sidrec.metrics.exact import METRICS_FILE, load_metrics
from sidrec.train.run_directory import RUN, RunDirectory, write_text

GRACE = 30.0  # seconds for a launcher to stop its ranks

log = logging.getLogger(__name__)


class RunError(RuntimeError):
    """A run that left no metrics; the message says how it ended and where its output is."""


def run_study(study: Study, results: Path) -> list[Run]:
    """Trains what is not finished yet. Returns the runs that failed.

    A run is finished when its JSON is under `results` and its recipe is still the same. Raises ConfigError before the
    first training when any recipe has a mistake.
    """
    runs = study_runs(study)
    for run in runs:
        run.checked()

    def train(run: Run) -> None:
        if load_result(results, run) is not None:
            log.info("%s: the recipe has changed since it was trained, training again", run)
        save_result(results, run, _train(study, run))

    failures = (OSError, ValueError, RunError)
    return do_missing(study.name, runs, lambda run: _is_finished(results, run), train, failures)


def _is_finished(results: Path, run: Run) -> bool:
    result = load_result(results, run)
    return result is not None and result["recipe_hash"] == run.recipe_hash


def _train(study: Study, run: Run) -> RunResult:
    recipe, output = run.directory.with_suffix(".yaml"), run.directory.with_suffix(".log")
    _prepare(run, recipe)
    facts = conditions()  # before training: the commit may move on meanwhile
    command = [word.replace("{recipe}", str(recipe)).replace("{ranks}", str(study.ranks)) for word in study.command]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    status = _call(command, output)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if status or not (run.directory / METRICS_FILE).exists():
        tail = "\n".join(output.read_text(errors="replace").splitlines()[-25:])
        raise RunError(f"exit status {status}, output in {output}, which ends\n{tail}")
    return RunResult(
        study=study.name,
        dataset=run.dataset,
        variant=run.variant,
        seed=run.seed,
        recipe_hash=run.recipe_hash,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=run.recipe,
        conditions=facts | {"ranks": study.ranks, "command": " ".join(study.command)},
        run=_trainer_facts(run),
        wall_seconds=round(wall, 2),
        cpu_seconds=round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        metrics=load_metrics(run.directory / METRICS_FILE),
    )


def _call(command: list[str], output: Path) -> int:
    """Runs the command to its end and returns its exit status; when this process is stopped, the command is too."""
    with output.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
        )
    try:
        return process.wait()
    except BaseException:
        # The launcher gets time to stop its ranks, which may be sessions of their own: no kill from here reaches those.
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise


def _prepare(run: Run, recipe: Path) -> None:
    """Writes the recipe. An interrupted run of this recipe is left to go on, any other run directory is removed."""
    text = yaml.safe_dump(run.recipe, sort_keys=False)
    interrupted = recipe.exists() and recipe.read_text() == text and not (run.directory / METRICS_FILE).exists()
    if run.directory.exists() and not interrupted:
        check_replaceable(run.directory.resolve(), RUN)
        log.info("%s: removing %s, which is of another recipe or has no result on record", run, run.directory)
        shutil.rmtree(run.directory)
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_text(recipe, text)


def _trainer_facts(run: Run) -> dict[str, object]:
    """What the trainer noted about itself, and the catalog it used."""
    directory = RunDirectory(run.directory)
    facts = json.loads(directory.facts.read_text()) if directory.facts.exists() else {}
    catalog = {"catalog": directory.fingerprint.read_text().strip()} if directory.fingerprint.exists() else {}
    return {**facts, **catalog}


def _environment() -> dict[str, str]:
    """This environment, with the programs beside this Python interpreter found first (torchx, torchrun)."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
