"""Cost of `sidrec fit` for ten million items, run as a command with one thread.

    python -m benchmarks.sid_scale DATA --write

Makes DATA/items.parquet unless it is there: ten million vectors of width 256 take 10 GB, and each fit as much again for
its scratch file. Then one process per learner, measured from outside (`cost_of`); the seconds of its parts are those
that it reports.

Shapes: V width, R rows of a row group.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tqdm import tqdm

from benchmarks.tables import markdown_table
from sidrec.io.files import write_json, write_text
from sidrec.schema import ITEM_ID, ITEMS
from sidrec.sid.catalog import REPORT
from sidrec.study.results import conditions

CLUSTERS = 1000
ROWS = 65_536  # of a row group
PARTS = ("read", "fit", "encode", "resolve")  # whose seconds a fit reports itself
EPOCHS = 30  # that a training is extrapolated to
RESULT = Path(__file__).with_suffix(".json")

CODES = {"levels": 3, "codebook_size": 256}
TRAINING = {"epochs": 1, "batch_size": 4096}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "residual_kmeans": {"learner": {"kind": "residual_kmeans", **CODES}},
    "rqvae": {"learner": {"kind": "rqvae", **CODES, "hidden": [512, 256, 128], "training": TRAINING}},
    "residual_kmeans, collisions resolved": {
        "learner": {"kind": "residual_kmeans", **CODES},
        "resolve_collisions": True,
    },
}
INTERVAL = 0.1  # seconds between two looks at the process
SECTOR = 512  # bytes that rusage counts as one block


@dataclass(frozen=True)
class Cost:
    """Of one process, without those it starts.

    own_bytes: the most anonymous memory seen, which the machine cannot take back. mapped_bytes: the most of all
        resident pages, with those of mapped files, which the machine drops when it needs room; what `ps` calls RSS.
    scratch_bytes: the most on disk in the folder that TMPDIR named. read_bytes: fetched from disk, not from the page
        cache.
    """

    wall_seconds: float
    cpu_seconds: float
    own_bytes: int
    mapped_bytes: int
    scratch_bytes: int
    read_bytes: int


def write_vectors(path: Path, items: int, width: int, seed: int, group_rows: int = ROWS) -> None:
    """Writes items.parquet: ids from 1, and float32 vectors, a coarse centre + 1/2 a fine one + 1/4 noise, all normal.

    CLUSTERS of each kind, in any combination: there is something left to learn on every level. In row groups of
    `group_rows`, which share their noise, in another order, so that making them takes little memory and time. The file
    appears when it is whole.
    """
    random = np.random.default_rng(seed)
    coarse, fine = random.standard_normal((2, CLUSTERS, width), dtype=np.float32)
    fine /= 2
    noise_RV = random.standard_normal((min(group_rows, items), width), dtype=np.float32) / 4
    schema = pa.schema([(ITEM_ID, pa.int64()), ("text", pa.list_(pa.float32(), width))])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with (
            pq.ParquetWriter(partial, schema, use_dictionary=False) as writer,
            tqdm(total=items, desc="make items", unit=" items", unit_scale=True, disable=None) as progress,
        ):
            for start in range(0, items, group_rows):
                rows = min(group_rows, items - start)
                vectors_RV = noise_RV[random.permutation(len(noise_RV))[:rows]]
                vectors_RV += coarse[random.integers(CLUSTERS, size=rows)]
                vectors_RV += fine[random.integers(CLUSTERS, size=rows)]
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_RV.ravel()), width)
                writer.write_table(pa.table([pa.array(np.arange(start, start + rows) + 1), column], schema=schema))
                progress.update(rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def fit_cost(name: str, data: Path, keep: bool) -> dict[str, Any]:
    """Runs one `sidrec fit` with one thread; what it cost and what it reported. The catalog goes unless `keep`."""
    folder = data / "fits" / name.replace(", ", "-").replace(" ", "-")
    recipe, catalog, scratch = folder / "recipe.yaml", folder / "catalog", folder / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    scratch.mkdir(parents=True)
    paths = {"path": str(data), "catalog": str(catalog)}
    recipe.write_text(yaml.safe_dump({"name": "scale", "data": paths, "tokenizer": TOKENIZERS[name]}))
    command = [str(Path(sys.executable).with_name("sidrec")), "fit", str(recipe)]
    try:
        cost = cost_of(command, {"OMP_NUM_THREADS": "1", "SIDREC_THREADS": "1"}, scratch)
        report = json.loads((catalog / REPORT).read_text())
        size = sum(path.stat().st_size for path in catalog.rglob("*") if path.is_file())
    finally:
        if not keep:
            shutil.rmtree(folder)
    return result(cost, report, size)


def result(cost: Cost, report: Mapping[str, Any], catalog_bytes: int) -> dict[str, Any]:
    """The figures of one fit. Its parts are in CPU seconds; `rest` is all after the codes (quality, pictures, writing)
    and the start of the process."""
    parts = {part: float(report[f"{part}_cpu_seconds"]) for part in PARTS if f"{part}_cpu_seconds" in report}
    kept = ("items", "utilisation", "unexplained_variance", "collision_rate", "moved_items", "unresolved_items")
    quality = {key: report["quality"][key] for key in kept if key in report["quality"]}
    parts["rest"] = cost.cpu_seconds - sum(parts.values())
    figures = asdict(cost) | {"catalog_bytes": catalog_bytes, "parts_cpu_seconds": parts, "quality": quality}
    epochs = report["tokenizer"]["learner"].get("training", {}).get("epochs")
    if epochs is not None:
        further = (EPOCHS / epochs - 1) * parts["fit"]
        figures["extrapolated"] = {"epochs": EPOCHS, "cpu_hours_at_most": (cost.cpu_seconds + further) / 3600}
    return figures


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All fits as two markdown tables: time, and memory."""
    time = ["learner", "items", *PARTS, "rest", "all, CPU", "all, wall", f"CPU of {EPOCHS} epochs, at most"]
    space = ["learner", "own memory", "with mapped files", "read from disk", "scratch", "catalog"]
    seconds = markdown_table(time, [_seconds(name, figures) for name, figures in results.items()])
    return f"{seconds}\n\n{markdown_table(space, [_space(name, figures) for name, figures in results.items()])}"


def _seconds(name: str, figures: Mapping[str, Any]) -> list[str]:
    items, parts = figures["quality"]["items"], figures["parts_cpu_seconds"]
    cells = [f"{parts[part]:,.0f} s ({items / parts[part]:,.0f}/s)" if part in parts else "" for part in PARTS]
    cells += [f"{seconds:,.0f} s" for seconds in (parts["rest"], figures["cpu_seconds"], figures["wall_seconds"])]
    hours = figures.get("extrapolated", {}).get("cpu_hours_at_most")
    return [name, f"{items:,}", *cells, "" if hours is None else f"{hours:.1f} h"]


def _space(name: str, figures: Mapping[str, Any]) -> list[str]:
    sizes = ("own", "mapped", "read", "scratch", "catalog")
    return [name, *(f"{figures[f'{size}_bytes'] / 1e9:.2f} GB" for size in sizes)]


def report_text(results: Mapping[str, Mapping[str, Any]], facts: Mapping[str, object]) -> str:
    """The tables and their conditions, as markdown."""
    notes = (
        "CPU seconds, and items per CPU second in brackets. fit: one epoch where there are epochs, the placement of"
        " codebooks, the digest that a resumed fit is recognised by and the check for collapse. rest: start, quality"
        f" with the reconstruction of all items, pictures, writing. {EPOCHS} epochs are extrapolated, not run: the"
        " measured fit, and for each further epoch its whole `fit`, so that what a fit does once counts every time. Own"
        " memory is anonymous memory, looked at every tenth of a second; mapped files are the scratch file, whose pages"
        " the machine drops when it needs room."
    )
    lines = "\n".join(f"* {name}: {value}" for name, value in facts.items())
    return f"# Semantic ids for very many items\n\n{table(results)}\n\n{notes}\n\n{lines}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder for items and fits; an items.parquet in it is used and kept")
    parser.add_argument("--items", type=int, default=10_000_000, help="to make")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learners", nargs="+", choices=TOKENIZERS, default=list(TOKENIZERS))
    parser.add_argument("--keep", action="store_true", help="items and catalogs that were made")
    parser.add_argument("--write", action="store_true", help=f"{RESULT.name} and sid_scale.md beside this file")
    flags = parser.parse_args()
    facts = conditions() | {"clusters": CLUSTERS, "width": flags.width, "threads": 1}
    items = flags.data / ITEMS
    made = not items.exists()
    if made:
        write_vectors(items, flags.items, flags.width, flags.seed)
    results: dict[str, Any] = {}
    try:
        for name in flags.learners:
            print(f"{name}, {pq.read_metadata(items).num_rows:,} items", flush=True)
            results[name] = fit_cost(name, flags.data, flags.keep)
            print(table(results), flush=True)
            if flags.write:
                write_json(RESULT, {"conditions": facts, "results": results})
                write_text(RESULT.with_suffix(".md"), report_text(results, facts))
    finally:
        if made and not flags.keep:
            items.unlink()


# The cost of a command: time, memory with and without mapped pages, scratch files, bytes read from disk.


def cost_of(
    command: Sequence[str],
    environment: Mapping[str, str],
    scratch: Path,
    pause: Callable[[float], None] = time.sleep,
) -> Cost:
    """Runs `command` to its end, with its output where this process's goes.

    scratch: a folder of its own for temporary files. pause: called between two looks at the process, with INTERVAL.
    Raises CalledProcessError when the command fails.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, env={**os.environ, **environment, "TMPDIR": str(scratch)}) as process:
        own = mapped = disk = 0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            memory = _memory(process.pid)
            own, mapped = max(own, memory.get("RssAnon", 0)), max(mapped, memory.get("VmHWM", 0))
            disk = max(disk, _on_disk(scratch))
            pause(INTERVAL)
        _, status, usage = ended
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    cpu = usage.ru_utime + usage.ru_stime
    read = usage.ru_inblock * SECTOR
    return Cost(time.perf_counter() - start, cpu, own, mapped, disk, read)


def _memory(process: int) -> dict[str, int]:
    """Bytes by name, as the kernel has them; empty once the process has ended.

    Not rusage's maxrss: that begins with what the parent had when it forked.
    """
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in fields}


def _on_disk(folder: Path) -> int:
    total = 0
    for path, folders, names in os.walk(folder):  # passes over folders that are gone since they were listed
        for name in (*folders, *names):
            with suppress(FileNotFoundError):
                total += Path(path, name).stat().st_blocks * SECTOR
    return total


if __name__ == "__main__":
    main()
