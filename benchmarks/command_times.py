"""Seconds that commands take: help and mistyped recipes, plans of many ranks, the demo, the test suite.

    python -m benchmarks.command_times NAME ... [--write]      NAME: start, plans, demo, suite

CPU seconds are of the command and its processes, wall seconds of the command. `start` is the median of three runs, the
rest run once. --write puts figures and conditions into command_times.json; those of other names stay.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypedDict

from sidrec.io.files import read_json, write_json
from sidrec.study.results import Conditions, conditions

RESULT = Path(__file__).with_name("command_times.json")
ROOT = Path(__file__).parents[1]
SIDREC = str(Path(sys.executable).with_name("sidrec"))
WORKERS = ("-n", "4", "--dist", "loadfile", "--no-loadscope-reorder")  # as `make test`
IN_CHECKOUT = {"launch.demo", "pytest"}
TABLES = 500
ROWS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


class Times(TypedDict):
    """command: as a user types it."""

    command: str
    cpu_seconds: float
    wall_seconds: float


def main(argv: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.command_times",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=GROUPS, metavar="NAME", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args(argv)
    recorded: dict[str, object] = dict(read_json(RESULT, "recorded times")) if RESULT.exists() else {}
    for name in arguments.names:
        facts: Conditions = conditions() | {"load_average": round(os.getloadavg()[0], 1)}
        commands, runs = GROUPS[name]
        with tempfile.TemporaryDirectory() as folder:
            _write_inputs(Path(folder))
            times = {title: _times(words, Path(folder), runs) for title, words in commands.items()}
        for title, of in times.items():
            print(f"{title}: {of['cpu_seconds']} CPU s, {of['wall_seconds']} s", flush=True)
        recorded[name] = {"conditions": facts, "runs": runs, "times": times}
    if arguments.write:
        write_json(RESULT, recorded)


def _write_inputs(folder: Path) -> None:
    """A recipe with a mistyped key, and a file of 500 tables of a thousand to ten million rows."""
    (folder / "mistyped.yaml").write_text("name: mistyped\ndata: {path: data, batch_sise: 64}\n")
    tables = [f"- {{name: t{table}, rows: {ROWS[table % len(ROWS)]}, width: 64}}" for table in range(TABLES)]
    (folder / "tables500.yaml").write_text("\n".join(["name: tables500", "rows_per_step: 65536", "tables:", *tables]))


def _times(words: Sequence[str], folder: Path, runs: int) -> Times:
    found = [_run(words, folder) for _ in range(runs)]
    cpu, wall = (round(median(values), 2) for values in zip(*found, strict=True))
    return Times(command=" ".join(Path(word).name for word in words), cpu_seconds=cpu, wall_seconds=wall)


def _run(words: Sequence[str], folder: Path) -> tuple[float, float]:
    """CPU and wall seconds. The demo and the suite run in the checkout, all else in the folder with the inputs."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    place = ROOT if IN_CHECKOUT & set(words) else folder
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as `make test`
    ended = subprocess.run(words, cwd=place, env=one_thread, capture_output=True, text=True, check=False)
    if ended.returncode and "mistyped.yaml" not in words:
        sys.exit(f"{' '.join(words)}: exit status {ended.returncode}\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}")
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


GROUPS: Mapping[str, tuple[Mapping[str, Sequence[str]], int]] = {
    "start": (
        {
            "train --help": (SIDREC, "train", "--help"),
            "evaluate --help": (SIDREC, "evaluate", "--help"),
            "plan --help": (SIDREC, "plan", "--help"),
            "a mistyped recipe": (SIDREC, "train", "mistyped.yaml"),
        },
        3,
    ),
    "plans": (
        {
            "MLPerf's 26 tables, 8 GPUs": (SIDREC, "plan", "criteo-mlperf", "--hardware", "8xh100"),
            "MLPerf's 26 tables, 64 GPUs": (SIDREC, "plan", "criteo-mlperf", "--hardware", "8x8h100"),
            "MLPerf's 26 tables, 128 GPUs": (SIDREC, "plan", "criteo-mlperf", "--hardware", "16x8h100"),
            "500 tables, 128 GPUs": (SIDREC, "plan", "tables500.yaml", "--hardware", "16x8h100"),
        },
        1,
    ),
    "demo": ({"make demo, installed": (sys.executable, "-m", "launch.demo")}, 1),
    "suite": ({"make test, installed": (sys.executable, "-m", "pytest", "-q", *WORKERS)}, 1),
}
"""Name -> title -> command, and how often it is run."""


if __name__ == "__main__":
    main(sys.argv[1:])
