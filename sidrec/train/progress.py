"""How a training is watched on rank 0: a bar on a terminal, lines elsewhere, metrics.jsonl, the time left.

A bar goes to stderr, lines go to stdout. Lines that a bar repeats are left out where both streams are one terminal.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, Never

from tqdm import tqdm

from sidrec.io.files import write_text
from sidrec.io.progress import is_terminal
from sidrec.train.run_directory import RunDirectory
from sidrec.train.step import Skipped, places_text
from sidrec.train.tracking import Evaluation, Tracking

WARM_UP = 5
"""First steps of a process that no estimate counts: workers start, kernels are chosen, caches fill."""
UNKNOWN = "?"


def print_line(line: str) -> None:
    """Prints a line on stdout, above the progress bars of this process."""
    tqdm.write(line)
    sys.stdout.flush()


def lines_wanted() -> bool:
    """Whether lines about progress are printed: not where stdout and stderr both are terminals, and bars show it."""
    return not (is_terminal(sys.stdout) and is_terminal(sys.stderr))


def progress_bar(what: str, done: int, steps: int, *, leave: bool = True) -> "tqdm[Never]":
    """A bar on stderr, if that is a terminal. Its text after the numbers is set with `set_postfix_str`."""
    form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
    hidden = not is_terminal(sys.stderr)
    return tqdm(desc=what, initial=done, total=steps, bar_format=form, leave=leave, disable=hidden, dynamic_ncols=True)


class TimeLeft:
    """Estimates the seconds until a training and its evaluations end.

    Steps are timed without the first WARM_UP steps of the process and without evaluations. Rows still to be evaluated
    take as long as those evaluated so far; before the first evaluation, as long as rows of training, which is more.
    """

    def __init__(
        self,
        steps: int,
        rows_of_step: float,
        rows_to_evaluate: Callable[[int], int] = lambda step: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """steps: of the whole training. rows_to_evaluate: after a number of steps, in all evaluations to come."""
        self._steps, self._rows_of_step, self._rows_to_evaluate, self._clock = (
            steps,
            rows_of_step,
            rows_to_evaluate,
            clock,
        )
        self._counted = 0
        self._first: tuple[int, float] | None = None  # the last step of the warm-up, and when it ended
        self.paused = 0.0
        """Seconds spent in evaluations so far."""
        self._evaluated_rows = 0

    def count(self, step: int) -> None:
        """Call after each step. step: number of steps of the run."""
        self._counted += 1
        if self._counted == WARM_UP:
            self._first = step, self._clock() - self.paused

    @contextmanager
    def evaluating(self, rows: int) -> Iterator[None]:
        """Around an evaluation of `rows` rows."""
        begun = self._clock()
        yield
        self.paused += self._clock() - begun
        self._evaluated_rows += rows

    def seconds(self, step: int) -> float | None:
        """From the end of `step` to the end of the run's last evaluation; None while there is no basis."""
        if self._first is None or step <= self._first[0]:
            return None
        first, then = self._first
        of_step = (self._clock() - self.paused - then) / (step - first)
        of_row = self.paused / self._evaluated_rows if self._evaluated_rows else of_step / self._rows_of_step
        return of_step * (self._steps - step) + of_row * self._rows_to_evaluate(step)

    def text(self, step: int) -> str:
        """`seconds` as text."""
        left = self.seconds(step)
        return UNKNOWN if left is None else str(timedelta(seconds=round(left)))


class Progress:
    """The log of a training: a bar or lines with loss, speed and ETA, metrics.jsonl and trackers. On rank 0 only."""

    def __init__(
        self,
        run: RunDirectory,
        done: int,
        left: TimeLeft,
        steps: int,
        tracking: Tracking,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """done: steps of the run so far; lines of later steps, from a process that was killed, are dropped."""
        self.steps = steps
        self.left = left
        self._clock = clock
        self.last = clock()
        self.last_pause = left.paused
        self.rows = 0.0
        for log in (run.log, run.skipped, run.evaluations):
            _drop_after(log, done)
        self.log = run.log.open("a", encoding="utf-8")
        self.skipped_log = run.skipped
        self.skipped = len(run.skipped.read_text(encoding="utf-8").splitlines()) if run.skipped.exists() else 0
        self.evaluations = run.evaluations
        self.tracking = tracking
        self.bar = progress_bar("train", done, steps)
        self._shown = ""

    def count(self, step: int, rows: float, skipped: Skipped | None) -> None:
        """Adds a step. rows: over all ranks. skipped: None if the step was applied."""
        self.rows += rows
        self.left.count(step)
        self.bar.set_postfix_str(f"{self._shown}ETA {self.left.text(step)}", refresh=False)
        self.bar.update()
        if skipped is None:
            return
        self.skipped += 1
        places = f"; {places_text(skipped.rows)}" if skipped.rows else ""
        print_line(f"step {skipped.step} left out: {skipped.what}{places}")
        rows_by_file = {str(path): numbers for path, numbers in skipped.rows.items()}
        with self.skipped_log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": skipped.step, "what": skipped.what, "rows": rows_by_file}) + "\n")

    def report(self, step: int, epoch: int, terms: dict[str, float], lr_factor: float) -> None:
        """Reports the steps since the last report. terms: `loss` and its parts by name, means over all rows; empty if
        all these steps were skipped."""
        now, paused = self._clock(), self.left.paused
        speed = self.rows / max(1e-9, now - self.last - (paused - self.last_pause))
        loss = f"loss {terms.get('loss', math.nan):.5f}  {speed:,.0f} samples/s  "
        left_out = f"  {self.skipped} left out" if self.skipped else ""
        if lines_wanted():
            print_line(f"step {step}/{self.steps}  epoch {epoch + 1}  {loss}ETA {self.left.text(step)}{left_out}")
        self._shown = f"epoch {epoch + 1}  {loss}"
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
        self.tracking.scalars(
            {f"train/{name}": line[name] for name in (*terms, "lr_factor", "samples_per_second")}, step
        )
        self.last, self.last_pause, self.rows = now, paused, 0.0

    def evaluated(self, found: Evaluation) -> None:
        """Logs an evaluation during the training."""
        with self.evaluations.open("a", encoding="utf-8") as log:
            log.write(found.line() + "\n")
        self.tracking.evaluation(found)

    def close(self) -> None:
        """Closes bar and logs; prints how many steps of the run were skipped, if any."""
        self.bar.close()
        if self.skipped:
            print(f"{self.skipped} of {self.steps} steps were left out: {self.skipped_log}", flush=True)
        self.log.close()


def median_step_seconds(lines: Sequence[Mapping[str, Any]], batch_size: int) -> float | None:
    """Median wall time of a training step, from the lines of metrics.jsonl; None if they have no speed.

    The first line includes the warm-up and is left out if there are others.
    """
    speeds = [line["samples_per_second"] for line in lines if line.get("samples_per_second")]
    speeds = speeds[1:] or speeds
    return batch_size / median(speeds) if speeds else None


def _drop_after(log: Path, step: int) -> None:
    if log.exists():
        kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_text(log, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):  # the process died in the middle of this line
        return float("inf")
