"""What a person sees of training: a line with speed, loss and ETA, metrics.jsonl and TensorBoard. Rank 0 only."""

import json
import math
import time
from datetime import timedelta
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from sidrec.train.non_finite import Skipped, places_text
from sidrec.train.run_directory import RunDirectory, write_text


class Progress:
    """Reports one training run."""

    def __init__(self, run: RunDirectory, done: int, steps: int) -> None:
        """done: steps finished before this process began; lines that a lost process wrote beyond them are dropped."""
        self.steps = steps
        self.started = self.last = time.monotonic()
        self.first = done
        self.rows = 0.0
        for log in (run.log, run.skipped):
            _drop_after(log, done)
        self.log = run.log.open("a")
        self.skipped_log = run.skipped
        self.skipped = len(run.skipped.read_text().splitlines()) if run.skipped.exists() else 0
        self.board = SummaryWriter(str(run.tensorboard), purge_step=done)

    def count(self, rows: float, skipped: Skipped | None) -> None:
        """Adds the rows of a step, over all ranks. skipped: how it was left out, where it was."""
        self.rows += rows
        if skipped is None:
            return
        self.skipped += 1
        places = f"; {places_text(skipped.rows)}" if skipped.rows else ""
        print(f"step {skipped.step} left out: {skipped.what}{places}", flush=True)
        rows_by_file = {str(path): numbers for path, numbers in skipped.rows.items()}
        with self.skipped_log.open("a") as log:
            log.write(json.dumps({"step": skipped.step, "what": skipped.what, "rows": rows_by_file}) + "\n")

    def report(self, step: int, epoch: int, terms: dict[str, float], lr_factor: float) -> None:
        """Reports the steps since the last report. terms: `loss` and its parts by name, their means over all rows;
        empty where all these steps were left out."""
        now = time.monotonic()
        speed = self.rows / max(1e-9, now - self.last)
        left = (now - self.started) / max(1, step - self.first) * (self.steps - step)
        eta = timedelta(seconds=round(left))
        print(
            f"step {step}/{self.steps}  epoch {epoch + 1}  loss {terms.get('loss', math.nan):.5f}  "
            f"{speed:,.0f} samples/s  ETA {eta}{f'  {self.skipped} left out' if self.skipped else ''}",
            flush=True,
        )
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
        for name in (*terms, "lr_factor", "samples_per_second"):
            self.board.add_scalar(f"train/{name}", line[name], step)
        self.last, self.rows = now, 0.0

    def close(self) -> None:
        """Ends the report; says how many steps of the run were left out, if any were."""
        if self.skipped:
            print(f"{self.skipped} of {self.steps} steps were left out: {self.skipped_log}", flush=True)
        self.log.close()
        self.board.close()


def _drop_after(log: Path, step: int) -> None:
    if log.exists():
        kept = [line for line in log.read_text().splitlines() if _step_of(line) <= step]
        write_text(log, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):  # the process died in the middle of this line
        return float("inf")
