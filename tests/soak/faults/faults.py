"""Signals aimed at moments of a training that are seen from outside, and damage to its files between two starts."""

import random
import signal
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from tests.soak.faults.job import Job

AIM_TIMEOUT = 120.0  # seconds that a job may take from one moment to the next


class Kind(StrEnum):
    """Who gets which signal."""

    KILL_RANK = "SIGKILL of one rank"
    KILL_RANKS = "SIGKILL of all ranks"
    KILL_LAUNCHER = "SIGKILL of torchrun"
    KILL_ALL = "SIGKILL of everything"
    KILL_WORKER = "SIGKILL of a loader worker"
    TERM_LAUNCHER = "SIGTERM of torchrun"
    TERM_RANK = "SIGTERM of one rank"


class Moment(StrEnum):
    """What the training is at."""

    STARTING = "starting"
    TRAINING = "training"
    SAVING = "saving"
    EVALUATING = "evaluating"


SIGTERM_KINDS = (Kind.TERM_LAUNCHER, Kind.TERM_RANK)
"""Kinds that leave time for a last checkpoint."""
JOB_ENDING_KINDS = (Kind.KILL_LAUNCHER, Kind.TERM_LAUNCHER, Kind.KILL_ALL)
"""Kinds after which torchrun does not restart the ranks."""


@dataclass(frozen=True)
class Fault:
    """A signal at a moment. after: seconds after the start where that is the moment, else steps of the same start."""

    kind: Kind
    moment: Moment
    after: float


@dataclass
class Strike:
    """A fault that was dealt.

    aimed: the moment that was waited for. moment: what the training was doing when the signal was sent. world: ranks.
    step: the last one that this start had logged; None before it had read its checkpoint. restarted: by torchrun.
    damage: of files, afterwards. resumed: the step that the next start continued from; None if it was killed before it
    logged that. seconds: from that start to its first new step; None if no step was left, or it was killed before.
    gone: seconds until torchrun ended; None if it restarted the ranks.
    """

    kind: Kind
    aimed: Moment
    moment: Moment
    world: int
    step: int | None
    restarted: bool = False
    damage: str = ""
    resumed: int | None = None
    seconds: float | None = None
    gone: float | None = None


def aim(job: Job, fault: Fault, run: Path, steps: int) -> bool:
    """Waits for the fault's moment. Returns False if the job ended before. Raises HungError."""
    if fault.moment is Moment.STARTING:
        return job.wait_for(
            lambda: time.monotonic() > job.began + fault.after and _targets(job, fault.kind) != [], AIM_TIMEOUT
        )
    if not job.wait_for(lambda: job.start is not None, AIM_TIMEOUT) or job.start is None:
        return False
    start = job.start
    due = steps if fault.moment is Moment.EVALUATING else min(steps, start.position + int(fault.after))
    if not job.wait_for(lambda: start.step >= due, AIM_TIMEOUT):
        return False
    if fault.moment is Moment.EVALUATING:
        return job.wait_for((run / "checkpoints" / f"step-{steps}").is_dir, AIM_TIMEOUT)
    if fault.moment is Moment.SAVING:
        return job.wait_for(lambda: is_saving(run), AIM_TIMEOUT)
    return True


def is_saving(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((run / "checkpoints").glob("step-*.partial"))


def strike(job: Job, fault: Fault, run: Path, world: int, steps: int, draw: random.Random) -> Strike | None:
    """Sends the signal, at most a few hundredths of a second after its moment. None if its target is gone."""
    time.sleep(0 if fault.moment is Moment.STARTING else draw.random() * 0.03)
    targets = _targets(job, fault.kind)
    if not targets:
        return None
    if fault.kind in (Kind.KILL_RANK, Kind.TERM_RANK, Kind.KILL_WORKER):
        targets = [draw.choice(targets)]
    number = signal.SIGTERM if fault.kind in SIGTERM_KINDS else signal.SIGKILL
    dealt = Strike(fault.kind, fault.moment, _moment(job, run, steps), world, job.start.step if job.start else None)
    job.began = time.monotonic()
    reached = [_reached(target, number) for target in targets]
    return dealt if any(reached) else None


def _moment(job: Job, run: Path, steps: int) -> Moment:
    if not job.start or (job.start.step == job.start.position < steps):
        return Moment.STARTING
    if is_saving(run):
        return Moment.SAVING
    return Moment.EVALUATING if job.start.step >= steps else Moment.TRAINING


def _targets(job: Job, kind: Kind) -> list[psutil.Process]:
    match kind:
        case Kind.KILL_RANK | Kind.KILL_RANKS | Kind.TERM_RANK:
            return job.ranks()
        case Kind.KILL_WORKER:
            return job.loader_workers()
        case Kind.KILL_LAUNCHER | Kind.TERM_LAUNCHER:
            return [psutil.Process(job.process.pid)] if not job.ended else []
        case Kind.KILL_ALL:
            return job.processes()


def _reached(process: psutil.Process, number: int) -> bool:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


# Damage to a run's files between two starts.

NEWEST_FLIPPED, NEWEST_CUT, NEWEST_WITHOUT_INDEX = "newest: a bit flipped", "newest: cut", "newest: no index"
LEFT_OVER = "a half-written checkpoint left over"
CHECKPOINTS_NEEDED = {NEWEST_FLIPPED: 2, NEWEST_CUT: 2, NEWEST_WITHOUT_INDEX: 2, LEFT_OVER: 0}
"""Damage -> sound checkpoints that a run needs to continue after it."""


def checkpoints(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=_step)


def damage(run: Path, draw: random.Random) -> str:
    """Damages files in a way that a run survives. Returns the kind of damage, or "" if there is nothing to damage."""
    there = checkpoints(run)
    possible = [
        kind for kind, needed in CHECKPOINTS_NEEDED.items() if (run / "checkpoints").is_dir() and len(there) >= needed
    ]
    if not possible:
        return ""
    kind = draw.choice(possible)
    match kind:
        case "newest: a bit flipped":
            _flip(_largest(there[-1]), draw)
        case "newest: cut":
            path = _largest(there[-1])
            path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])
        case "newest: no index":
            (there[-1] / "index.json").unlink()
        case _:
            partial = run / "checkpoints" / f"step-{(_step(there[-1]) if there else 0) + 7}.partial"
            partial.mkdir(exist_ok=True)
            (partial / "rank-0.safetensors").write_bytes(draw.randbytes(1000))
    return kind


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _largest(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
