"""Saves with every optimizer, sharding type and number of ranks, loads with every other, and compares losses.

    python -m benchmarks.reshard_matrix --out OUT

OUT gets result.json and report.md. Exit status 1 when some run did not go on as it should.
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.fault_campaign.subject import make_subject
from benchmarks.reshard_matrix.report import report_text
from benchmarks.reshard_matrix.verdicts import Outcome, Verdict, judge
from benchmarks.reshard_matrix.worker import read_runs
from sidrec.io.files import write_json, write_text
from sidrec.study.results import conditions

ROOT = Path(__file__).parents[2]
WORLDS = (1, 2, 4)

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reshard_matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    parser.add_argument("--seed", type=int, default=0, help="seed of the log")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    facts: dict[str, object] = {**conditions(), "seed": arguments.seed}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="reshard-matrix-") as folder:
        make_subject(Path(folder), arguments.seed)
        for action in ("save", "load"):
            for world in WORLDS:
                log.info("%s on %d rank(s)", action, world)
                _start(action, world, Path(folder))
        verdicts = judge(read_runs(Path(folder), "saved"), read_runs(Path(folder), "loaded"))
    facts["seconds"] = round(time.monotonic() - began)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "result.json", {"conditions": facts, "cases": list(map(_case, verdicts))})
    write_text(arguments.out / "report.md", report_text(facts, verdicts))
    return 1 if any(found.outcome is Outcome.WRONG for found in verdicts) else 0


def _case(found: Verdict) -> dict[str, object]:
    """Plain data: how columns are cut is the same for all cases of a plan, and left out."""
    run = found.run
    return {
        "saved": asdict(run.start) if run.start else None,
        "loaded": asdict(run.plan),
        "outcome": found.outcome,
        "difference": found.difference,
        "between": found.between,
        "refusal": run.refusal,
    }


def _start(action: str, world: int, folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "benchmarks.reshard_matrix.worker", action, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
