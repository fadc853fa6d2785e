"""Does what is missing of a list of jobs, one after the other: a failed one does not stop the rest."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Job = TypeVar("Job")

log = logging.getLogger(__name__)


def do_missing(
    title: str,
    jobs: Sequence[Job],
    is_finished: Callable[[Job], bool],
    do: Callable[[Job], None],
    failures: tuple[type[Exception], ...],
) -> list[Job]:
    """Returns the jobs that failed; str(job) names a job in the log.

    is_finished: is asked again before a job begins, as another process may have done it meanwhile.
    do: does one job and saves what came of it. failures: what a failed job raises; anything else ends everything.
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
