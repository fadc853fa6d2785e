"""Under which conditions a bench was run: a figure without them says nothing."""

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sidrec import __version__
from sidrec.bench.subject import Subject
from sidrec.bench.trial import Amounts
from sidrec.machine import cores
from sidrec.parallel.process_group import Ranks
from sidrec.stack import find_stack

HELD_FIXED = (
    "batches and their order, first values of tables and dense layers, and the optimizer of every table: replicated "
    "tables (data_parallel), which FBGEMM's fused optimizer does not see, are stepped by torch's of its kind and rate"
)


def conditions(subject: Subject, amounts: Amounts, keep: bool, ranks: Ranks) -> dict[str, Any]:
    """Plain data."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "sidrec": __version__,
        "commit": _commit(),
        "stack": str(find_stack()),
        "processor": _processor(),
        "cores": cores(),
        "ranks": ranks.world,
        "threads_per_rank": ranks.threads,
        "warm_up": amounts.warm_up,
        "steps": amounts.steps,
        "step": {
            "sparse_dist": "TrainPipelineSparseDist, which sends the next batch's ids during a step",
            "plain": "TrainPipelineBase, one batch after the other",
        }[subject.pipeline],
        "models": "kept between rounds" if keep else "built anew for every round, as all at once would not fit",
        "optimizer": f"tables {subject.optimizer.tables.kind}, dense layers {subject.optimizer.dense.kind}",
        "held_fixed": HELD_FIXED,
        **subject.facts,
    }


def _commit() -> str | None:
    """Of the checkout that sidrec runs from, `+` where it was changed; None for an installed package."""
    root = Path(__file__).parents[2]
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return f"{commit}+" if _git(root, "status", "--porcelain", "--", "sidrec") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
