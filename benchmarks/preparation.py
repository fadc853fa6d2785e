"""What preparation costs: CPU time, peak memory and spilled bytes of `prep interactions`, by the number of events.

    python -m benchmarks.preparation [--events 2 20] [--memory 2GB] [--against CHECKOUT] [--rounds 3] [--write]

Each round is a process of its own with one thread. The log is synthetic: users by a square and items by a cube law, one
user and one item with a twentieth of the rows each, 60 days. Two forms: with labels, and positives alone, for which a
negative is drawn for each. `--against` names a checkout of another commit, which prepares the same log in turn; its
flags may be fewer. --events counts millions. --write puts the result into preparation.json and preparation.md.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.io.files import write_json, write_text
from sidrec.io.progress import looking
from sidrec.study.results import conditions

RESULT = Path(__file__).with_name("preparation.json")
PAGE = RESULT.with_suffix(".md")
ROOT = Path(__file__).parents[1]
MILLION, GROUP = 1_000_000, 1_000_000
DAYS = 60
SECONDS = 0.5  # between looks at the scratch folder
FORMS = {"labels": ("--label-column", "label"), "negatives": ()}
MEASURED = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"\\nused {used.ru_utime + used.ru_stime} {used.ru_maxrss * 1024}")
"""


def write_log(path: Path, events: int) -> None:
    """A Parquet file of events in no order."""
    random = np.random.default_rng(0)
    users, items = max(1000, events // 20), max(500, events // 40)
    arrow = pa.schema(
        [("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64()), ("label", pa.int8())]
    )
    with pq.ParquetWriter(path, arrow) as writer:
        for begin in range(0, events, GROUP):
            count = min(GROUP, events - begin)
            user_N = np.where(random.random(count) < 0.05, 7, users * random.random(count) ** 2).astype(int)
            item_N = np.where(random.random(count) < 0.05, 3, items * random.random(count) ** 3).astype(int)
            columns = (
                [f"u{user}" for user in user_N],
                [f"i{item}" for item in item_N],
                1_600_000_000 + random.integers(0, DAYS * 86_400, count),
                (random.random(count) < 0.3).astype(np.int8),
            )
            writer.write_table(pa.table([pa.array(column) for column in columns], schema=arrow))


def measure(checkout: Path, log: Path, form: str, flags: Sequence[str]) -> dict[str, float]:
    """CPU seconds, peak resident bytes, most bytes below the work folder that OUT does not have."""
    out = log.with_name("out")
    words = ["data_prep.interactions", str(log), str(out), *FORMS[form], *flags]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    scratch, most = out.with_name("out.partial") / "scratch", 0

    def look() -> None:
        nonlocal most
        with suppress(FileNotFoundError):  # renamed or deleted meanwhile
            most = max(most, sum(path.stat().st_size for path in scratch.rglob("*")))

    with looking(look, SECONDS):
        command = [sys.executable, "-c", MEASURED, *words]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    shutil.rmtree(out)
    cpu, peak = map(float, done.stdout.rpartition("used ")[2].split())
    return {"cpu_s": cpu, "peak": peak, "scratch": most}


def rounds_of(contenders: dict[str, Path], log: Path, form: str, memory: str, rounds: int) -> dict[str, Any]:
    """Contender -> its rounds; they take turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, checkout in contenders.items():
            flags = ("--memory", memory, "--threads", "1") if checkout == ROOT else ()
            found[name].append(measure(checkout, log, form, flags))
            print(f"{log.name} {form} {name}, round {number + 1}: {json.dumps(found[name][-1])}", file=sys.stderr)
    return found


def page(result: dict[str, Any]) -> str:
    """The result as a table."""
    floor = min(each["peak"] for entry in result["measured"] for of in entry["rounds"].values() for each in of) / 1e6
    lines = [
        "# Preparation",
        "",
        "Written by `python -m benchmarks.preparation --write`; medians of the rounds, one thread.",
        f"--memory {result['memory']}; {result['conditions']['cpu']}, {result['conditions']['cores']} shared cores.",
        f"A peak of {floor:,.0f} MB is that of the benchmark, whose copy each process is before it begins.",
        "",
        f"Checkout `other`: {result.get('against', 'none')}.",
        "",
        "| million events | form | checkout | CPU s | CPU s per million events | peak MB | scratch MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in result["measured"]:
        for name, rounds in entry["rounds"].items():
            cpu, peak, scratch = (
                statistics.median(each[key] for each in rounds) for key in ("cpu_s", "peak", "scratch")
            )
            cells = (f"{entry['events']:g}", entry["form"], name, f"{cpu:.1f}", f"{cpu / entry['events']:.2f}")
            lines.append(f"| {' | '.join(cells)} | {peak / 1e6:,.0f} | {scratch / 1e6:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=float, nargs="+", default=[2.0], help="millions")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    contenders = {"this": ROOT} | ({"other": asked.against.resolve()} if asked.against else {})
    measured = []
    for events in asked.events:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / f"{events:g}M.parquet"
            write_log(log, round(events * MILLION))
            for form in asked.forms:
                rounds = rounds_of(contenders, log, form, asked.memory, asked.rounds)
                measured.append({"events": events, "form": form, "rounds": rounds})
    found = {"memory": asked.memory, "conditions": conditions(), "at": time.strftime("%Y-%m-%d"), "measured": measured}
    if asked.against:
        found["against"] = conditions(asked.against.resolve())["commit"]
    print(page(found))
    if asked.write:
        write_json(RESULT, found)
        write_text(PAGE, page(found))


if __name__ == "__main__":
    main()
