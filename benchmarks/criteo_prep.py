"""What preparing a raw Criteo log costs: CPU time and memory, beside TorchRec's own script.

    python -m benchmarks.criteo_prep HEAD --write

HEAD is the first rows of Kaggle's train.txt, plain or .gz. They are repeated, and values that are rare in them become
others in every repetition, so that tables grow with rows as they do in the real log. Every contender runs alone in a
process with one thread on one pinned core and reads an uncompressed file; what it imports is not counted, writing is.
TorchRec's tsv_to_npys makes no contiguous ids: it does less. Distinct values grow with rows here, and with them what a
vocabulary needs while it is made; hashing shows what rows alone cost in memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.criteo_prep_alone import CONTENDERS
from benchmarks.step_time import spread
from benchmarks.tables import markdown_table
from sidrec.io.files import write_json, write_text
from sidrec.study.results import conditions

RESULT = Path(__file__).with_suffix(".json")
ROUNDS = 3
RARE = 3  # values that occur less often in the head become others in every repetition
COLUMNS = [f"column_{number}" for number in range(1, 41)]
CATEGORICAL = COLUMNS[14:]


def write_log(head: Path, rows: int, path: Path) -> None:
    """At least `rows` rows made of the head's; the first repetition is the head itself."""
    frame = pl.read_csv(
        head, separator="\t", has_header=False, new_columns=COLUMNS, infer_schema=False, quote_char=None
    )
    values = {name: frame[name].str.to_integer(base=16, dtype=pl.UInt32) for name in CATEGORICAL}
    rare = {name: (frame.select(pl.len().over(name)).to_series() < RARE).to_numpy() for name in CATEGORICAL}
    with path.open("wb") as file:
        for repetition in range(-(-rows // len(frame))):
            step = np.uint32(repetition * 0x9E3779B1 & 0xFFFFFFFF)
            columns = []
            for name, value in values.items():
                known = value.fill_null(0).to_numpy()
                text = (known + step * rare[name]).astype(">u4").tobytes().hex()  # eight digits a value
                other = pl.Series(name, [text[at : at + 8] for at in range(0, len(text), 8)])
                columns.append(pl.select(pl.when(value.is_not_null()).then(other)).to_series().alias(name))
            frame.with_columns(columns).write_csv(file, separator="\t", include_header=False, quote_style="never")


def run_alone(name: str, source: Path, folder: Path) -> dict[str, float]:
    """What `measure` printed, in a child with one thread."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-m", "benchmarks.criteo_prep_alone", name, str(source), out]
        environment = os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def compare(small: Path, large: Path, rows: Mapping[Path, int], rounds: int) -> list[dict[str, Any]]:
    """One entry per contender and file; contenders take turns. TorchRec's script meets the small file alone."""
    names = list(CONTENDERS)
    turns = [(name, small) for name in names] * rounds + [(name, large) for name in names if name.startswith("sidrec")]
    measured: dict[tuple[str, Path], list[dict[str, float]]] = {}
    for name, source in turns:
        measured.setdefault((name, source), []).append(run_alone(name, source, source.parent))
    return [
        {
            "contender": name,
            "rows": rows[source],
            "rows_per_cpu_s": [round(v) for v in spread([rows[source] / one["cpu_s"] for one in runs])],
            "peak_mib": max(one["peak_mib"] for one in runs),
            "before_mib": max(one["before_mib"] for one in runs),
        }
        for (name, source), runs in measured.items()
    ]


def table(lines: list[dict[str, Any]]) -> str:
    """As markdown."""
    header = ["prepared by", "rows", "rows per CPU second, median [least-most]", "peak MiB", "of it before it began"]
    cells = []
    for line in lines:
        middle, least, most = line["rows_per_cpu_s"]
        rate = f"{middle:,} [{least:,}-{most:,}]"
        cells.append([line["contender"], f"{line['rows']:,}", rate, f"{line['peak_mib']:,}", f"{line['before_mib']:,}"])
    return markdown_table(header, cells)


def count_rows(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 24), b""))


def report(lines: list[dict[str, Any]], facts: Mapping[str, object]) -> str:
    """Table and conditions."""
    words = " ".join(__doc__.split("\n\n")[2].split())
    listed = "\n".join(f"* {name}: {value}" for name, value in facts.items())
    return f"# What preparing Criteo's log costs\n\n{table(lines)}\n\n{words}\n\n{listed}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("head", type=Path)
    parser.add_argument("--rows", type=int, default=3_000_000, help="of the large file")
    parser.add_argument("--small-rows", type=int, default=300_000, help="of the file that all contenders read")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--scratch", type=Path, help="folder for the logs and what is made of them")
    parser.add_argument("--write", action="store_true", help="criteo_prep.json and criteo_prep.md beside this file")
    flags = parser.parse_args()
    facts = conditions() | {"polars": pl.__version__, "rounds": flags.rounds}
    with tempfile.TemporaryDirectory(dir=flags.scratch) as folder:
        small, large = Path(folder) / "small.txt", Path(folder) / "large.txt"
        write_log(flags.head, flags.small_rows, small)
        write_log(flags.head, flags.rows, large)
        lines = compare(small, large, {small: count_rows(small), large: count_rows(large)}, flags.rounds)
    print(table(lines))
    if flags.write:
        write_json(RESULT, {"conditions": facts, "results": lines})
        write_text(RESULT.with_suffix(".md"), report(lines, facts))


if __name__ == "__main__":
    main()
