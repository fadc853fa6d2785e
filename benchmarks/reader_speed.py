"""What a loader costs: CPU time of each stage and bytes of a batch, on a synthetic log; here and in another checkout.

    python -m benchmarks.reader_speed [--against CHECKOUT] [--rounds 7] [--write]

A stage's time is that of all stages up to it, less the stage before. `--against` names a checkout of another commit,
which measures the same log in a process of its own; both take turns. Criteo-like rows: 13 dense, 27 id and 4 statistics
columns, histories of 0 to 50 items of 4 million; six features of an item, as HID and five granularities have. --write
puts the result into reader_speed.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import fields, replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sidrec.config.item import HidItem
from sidrec.config.model import ModelConfig
from sidrec.config.recipe import DataConfig
from sidrec.data import worker
from sidrec.data.item_tables import ItemTable, ItemTables, item_tables
from sidrec.data.loader import SplitLoader, columns_of, open_split
from sidrec.data.reader import Lanes, LogReader, Shuffling
from sidrec.data.rows import decode, split_index
from sidrec.io.files import write_json
from sidrec.schema import LOG, ContractError, LogFile, Manifest, load_manifest, log_schema, save_manifest
from sidrec.study.results import conditions

RESULT = Path(__file__).with_name("reader_speed.json")
BATCHES = (65_536, 4_096)
ROWS, ITEMS, HISTORY, CATEGORIES = 131_072, 4_000_000, 50, 26
GROUP_ROWS, FILES = 16_384, 4
SKEW = 1.5  # ids are ITEMS u ** SKEW, u uniform: 1.3 million distinct items in 65,536 rows
STAGES = ("read", "check", "mix", "distinct items", "rows of items", "block", "to the model")
WHOLE = {"worker": STAGES[:-1], "all": STAGES}
"""Sums of stages. A worker process adds what sending costs."""
PROCESS = "worker process"
TIMED = {"_number": "distinct items", "_assign_bags": "distinct items", "_item_lookups": "rows of items"}
"""Method of BatchArrays, in this or an earlier commit -> its stage."""


def write_log(folder: Path) -> None:
    """A train split of ROWS rows."""
    rng = np.random.default_rng(0)
    ids = {"user_id": 50_000, "item_id": ITEMS} | {f"cat_{c}": 10_000 for c in range(CATEGORIES)}
    dense, stats = tuple(f"int_{x}" for x in range(13)), tuple(f"stat_{s}" for s in range(4))
    per_file = ROWS // FILES
    files = tuple(
        LogFile(f"train/part-{f}.parquet", per_file, f * per_file, (f + 1) * per_file - 1) for f in range(FILES)
    )
    manifest = Manifest("synthetic", 0, ids, dense, stats, HISTORY, {"train": files})
    (folder / LOG / "train").mkdir(parents=True)
    for file in files:
        offsets = np.concatenate([[0], np.cumsum(rng.integers(0, HISTORY + 1, per_file))]).astype(np.int32)
        columns: dict[str, object] = {"label": rng.integers(0, 2, per_file).astype(np.float32)}
        columns["timestamp"] = np.arange(file.first_timestamp, file.last_timestamp + 1)
        columns |= {name: rng.integers(0, size, per_file) for name, size in ids.items()}
        columns["item_id"] = _items(rng, per_file)
        columns |= {name: rng.random(per_file, dtype=np.float32) for name in (*dense, *stats)}
        columns["history"] = pa.ListArray.from_arrays(offsets, _items(rng, int(offsets[-1])))
        table = pa.table({name: columns[name] for name in log_schema(manifest).names}, schema=log_schema(manifest))
        pq.write_table(table, folder / LOG / file.path, row_group_size=GROUP_ROWS)
    save_manifest(manifest, folder / LOG)


def _items(rng: np.random.Generator, size: int) -> np.ndarray:
    return (1 + (ITEMS - 1) * rng.random(size) ** SKEW).astype(np.int64)


# One checkout, in a process of its own.


class Contender:
    """The stages of this process's sidrec, which may be another commit's than this file."""

    def __init__(self, folder: Path, batch: int) -> None:
        torch.set_num_threads(1)
        manifest = load_manifest(folder / LOG)
        model = ModelConfig(item=HidItem(), context=tuple(name for name in manifest.ids if name != "item_id"))
        self._data = DataConfig(path=folder, catalog=folder, batch_size=batch, history_length=HISTORY, workers=0)
        self._columns = columns_of(self._data, model, manifest)
        self._groups = split_index(folder / LOG, "train", manifest)
        self._files = {group.path: pq.ParquetFile(group.path) for group in self._groups}
        tables = _with_sids(item_tables(model.item, manifest, None))

        def loader(workers: int) -> SplitLoader:
            return open_split(
                replace(self._data, workers=workers), model, "train",
                rank=0, world=1, seed=0, shuffle=True, tables=tables, manifest=manifest,
            )  # fmt: skip

        self._loader, self._fed = loader(0), loader(1)
        _drain(self._sent(self._fed))  # starts the process

    def round(self) -> dict[str, float]:
        """Microseconds of CPU time for a row, of each stage and of a worker's process; bytes of the first batch."""
        lanes = Lanes(ROWS, self._data.lanes, self._data.batch_size)
        shuffling = Shuffling(self._data.shuffle_rows, 0, self._data.order, self._data.lanes)
        reader = LogReader(self._groups, self._columns, lanes, shuffling, range(self._data.lanes), refuse=True)
        names = log_schema(self._columns.log).names
        files, groups, dataset = self._files, self._groups, self._loader._dataset
        dataset.seek(0, 0)
        read = _seconds(files[g.path].read_row_group(g.group, columns=names, use_threads=False) for g in groups)
        check = _seconds(decode(files[g.path], g, self._columns, refuse=True) for g in groups)
        mix = _seconds(reader.steps(0, range(lanes.steps)))
        with _Timed() as parts:
            sent = _seconds(dataset)
        model = _seconds(self._loader.batches(0))
        found = {"read": read, "check": check - read, "mix": mix - check, **parts.seconds}
        found |= {"block": sent - mix - sum(parts.seconds.values()), "to the model": model - sent}
        found[PROCESS] = self._of_process()
        first = next(iter(dataset)).outcome
        assert not isinstance(first, ContractError), first
        return {stage: seconds / ROWS * 1e6 for stage, seconds in found.items()} | {"bytes": first.bytes_.nbytes}

    def _sent(self, loader: SplitLoader) -> Iterator[object]:
        return getattr(loader, "packed_batches", loader.batches)(0)

    def _of_process(self) -> float:
        (process,) = (psutil.Process(child.pid) for child in active_children() if child.daemon)
        before = process.cpu_times()
        _drain(self._sent(self._fed))
        after = process.cpu_times()
        return after.user + after.system - before.user - before.system


def _with_sids(hid: ItemTables) -> ItemTables:
    """Five SID features more."""
    rng = np.random.default_rng(1)
    names = ("s1", "s2", "s3", "s12", "s23")
    rows_IF = np.concatenate([hid.rows_IF, rng.integers(1, 256, (len(hid.rows_IF), len(names)))], axis=1)
    rows_IF[0] = 0
    tables = {**hid.tables, **{name: ItemTable(256, (name,)) for name in names}}
    others = {f.name: getattr(hid, f.name) for f in fields(hid) if f.init and f.name not in ("tables", "rows_IF")}
    return ItemTables(tables=tables, rows_IF=rows_IF.astype(hid.rows_IF.dtype), **others)


class _Timed:
    """A context that times the parts of a batch's making, and packing, which is left in `block`."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(TIMED.values(), 0.0)
        self._undo = ExitStack()

    def __enter__(self) -> "_Timed":
        for name, stage in TIMED.items():
            if method := getattr(worker.BatchArrays, name, None):
                setattr(worker.BatchArrays, name, self._timed(method, stage))
                self._undo.callback(setattr, worker.BatchArrays, name, method)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _timed(self, method: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            before = time.process_time()
            found = method(*values)
            self.seconds[stage] += time.process_time() - before
            return found

        return call


def _seconds(work: Iterable[object]) -> float:
    before = time.process_time()
    _drain(work)
    return time.process_time() - before


def _drain(work: Iterable[object]) -> None:
    for _ in work:
        pass


def serve(folder: Path, batch: int) -> None:
    """Prints a round, as JSON, for each line that it reads."""
    contender = Contender(folder, batch)
    contender.round()  # fills caches
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(contender.round()), flush=True)


# Checkouts that take turns.


def measure(checkouts: dict[str, Path], folder: Path, batch: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Checkout -> its rounds."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    with ExitStack() as stack:
        children = {name: stack.enter_context(_child(path, folder, batch)) for name, path in checkouts.items()}
        for child in children.values():
            _answer(child)
        for turn in range(rounds):
            for name in list(children)[:: 1 if turn % 2 else -1]:
                child = children[name]
                assert child.stdin is not None
                print("round", file=child.stdin, flush=True)
                found[name].append(_answer(child))
        for child in children.values():
            child.communicate()
    return found


def _child(checkout: Path, folder: Path, batch: int) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", __file__, "--serve", str(folder), "--batch", str(batch)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _answer(child: "subprocess.Popen[str]") -> dict[str, float]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit("a checkout's process ended")
    return dict(json.loads(line))


def summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Checkout -> microseconds for a row by stage, rows per CPU second, bytes; "ratio" -> of rates, by round."""
    sums = {name: [_with_sums(each) for each in of] for name, of in rounds.items()}
    found: dict[str, Any] = {}
    for name, of in sums.items():
        medians = {stage: round(statistics.median(each[stage] for each in of), 3) for stage in of[0]}
        rates = {stage: round(1e6 / medians[stage]) for stage in (*WHOLE, PROCESS)}
        found[name] = {"microseconds": medians, "rows_per_cpu_second": rates, "bytes": int(medians.pop("bytes"))}
    if len(sums) > 1:
        here, there = sums.values()
        found["ratio"] = {
            stage: _spread([b[stage] / a[stage] for a, b in zip(here, there, strict=True)])
            for stage in (*WHOLE, PROCESS)
        }
    return found


def _with_sums(each: dict[str, float]) -> dict[str, float]:
    return each | {name: sum(each[stage] for stage in stages) for name, stages in WHOLE.items()}


def _spread(ratios: list[float]) -> dict[str, float]:
    found = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="a checkout of another commit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="record the result in reader_speed.json")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=BATCHES[0], help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        serve(flags.serve, flags.batch)
        return
    here = Path(__file__).parents[1]
    checkouts = {"here": here} | ({"against": flags.against.resolve()} if flags.against else {})
    facts: dict[str, Any] = conditions() | {"rows": ROWS, "items": ITEMS, "rounds": flags.rounds}
    if flags.against:
        facts["against"] = conditions(flags.against.resolve())["commit"]
    facts["load_average"] = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as temporary:
        write_log(Path(temporary))
        found = {}
        for batch in BATCHES:
            found[str(batch)] = summary(measure(checkouts, Path(temporary), batch, flags.rounds))
            print(f"batch {batch:,}: {json.dumps(found[str(batch)], indent=1)}", flush=True)
    if flags.write:
        write_json(RESULT, {"conditions": facts, "batches": found})


if __name__ == "__main__":
    main()
