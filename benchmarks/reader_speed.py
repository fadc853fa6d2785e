"""How fast one core feeds batches: rows per second of each stage, on a synthetic log in a temporary folder.

    python -m benchmarks.reader_speed [--rows 400000] [--items 100000] [--workers 1] [--write]

Stages are cumulative: decoding and checks, then shuffling into steps, then batches in this process, then batches from
worker processes, where the CPU seconds are those of the consuming process: what feeding takes away from training.
--write puts the rates into reader_speed.json.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.config.item import HidItem
from sidrec.config.model import ModelConfig
from sidrec.config.recipe import DataConfig
from sidrec.data.item_tables import ItemTable, ItemTables, item_tables, unused_per_item
from sidrec.data.loader import columns_of, open_split
from sidrec.data.reader import Lanes, LogReader, Shuffling
from sidrec.data.rows import decode, split_index
from sidrec.io.files import write_json
from sidrec.schema import LOG, LogFile, Manifest, log_schema, save_manifest
from sidrec.study.results import conditions

RESULT = Path(__file__).with_name("reader_speed.json")
GROUP_ROWS = 16_384
FILES = 4
HISTORY = 50


def write_log(folder: Path, rows: int, items: int) -> Manifest:
    """13 dense, 26 categorical and 4 statistics columns, Zipf-like items, histories of 0 to 50."""
    rng = np.random.default_rng(0)
    ids = {"user_id": 50_000, "item_id": items} | {f"cat_{c}": 10_000 for c in range(26)}
    dense, stats = tuple(f"int_{x}" for x in range(13)), tuple(f"stat_{s}" for s in range(4))
    per_file = rows // FILES
    files = tuple(
        LogFile(f"train/part-{f}.parquet", per_file, f * per_file, (f + 1) * per_file - 1) for f in range(FILES)
    )
    manifest = Manifest("synthetic", 0, ids, dense, stats, HISTORY, {"train": files})
    (folder / LOG / "train").mkdir(parents=True)
    for file in files:
        lengths = rng.integers(0, HISTORY + 1, per_file)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns: dict[str, object] = {"label": rng.integers(0, 2, per_file).astype(np.float32)}
        columns["timestamp"] = np.arange(file.first_timestamp, file.last_timestamp + 1)
        columns |= {name: rng.integers(0, size, per_file) for name, size in ids.items()}
        columns["item_id"] = _popular(rng, items, per_file)
        columns |= {name: rng.random(per_file, dtype=np.float32) for name in (*dense, *stats)}
        columns["history"] = pa.ListArray.from_arrays(offsets, _popular(rng, items, int(offsets[-1])))
        table = pa.table({name: columns[name] for name in log_schema(manifest).names}, schema=log_schema(manifest))
        pq.write_table(table, folder / LOG / file.path, row_group_size=GROUP_ROWS)
    save_manifest(manifest, folder / LOG)
    return manifest


def _popular(rng: np.random.Generator, items: int, size: int) -> np.ndarray:
    return (items ** rng.random(size)).astype(np.int64)  # density 1/id on [1, items)


def sid_coord_tables(items: int) -> ItemTables:
    """Six tables per item, as HID and five granularities have."""
    rng = np.random.default_rng(1)
    rows_IF = np.stack([np.arange(items), *(rng.integers(1, 256, items) for _ in range(5))], axis=1)
    rows = {"hid": items} | dict.fromkeys(("s1", "s2", "s3", "s12", "s23"), 256)
    tables = {name: ItemTable(count, (name,)) for name, count in rows.items()}
    return ItemTables(tables, rows_IF, unused_per_item(items))


def rate(stage: str, rows: int, work: Iterable[object]) -> dict[str, int]:
    """Runs a stage once, prints and returns its rate."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in work:
        pass
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"{stage:42s} {rows / cpu:12,.0f} rows per CPU second {rows / wall:12,.0f} rows per second")
    return {"rows_per_cpu_second": round(rows / cpu), "rows_per_second": round(rows / wall)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="record the rates in reader_speed.json")
    flags = parser.parse_args()
    facts = conditions() | {"rows": flags.rows, "items": flags.items, "load_average": round(os.getloadavg()[0], 1)}
    print(facts)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest = write_log(folder, flags.rows, flags.items)
        stages = measure(folder, manifest, flags.items, flags.workers)
    if flags.write:
        write_json(RESULT, {"conditions": facts, "stages": stages})


def measure(folder: Path, manifest: Manifest, items: int, workers: int) -> dict[str, dict[str, int]]:
    """Stage -> its rates."""
    model = ModelConfig(item=HidItem(), context=tuple(name for name in manifest.ids if name != "item_id"))
    data = DataConfig(path=folder, catalog=folder)
    columns = columns_of(data, model, manifest)
    groups = split_index(folder / LOG, "train", manifest)
    lanes = Lanes(manifest.rows("train"), data.lanes, data.batch_size)
    shuffling = Shuffling(data.shuffle_rows, seed=0, order=data.order, lanes=data.lanes)
    reader = LogReader(groups, columns, lanes, shuffling, range(data.lanes), refuse=True)
    files = {group.path: pq.ParquetFile(group.path) for group in groups}

    def stage(name: str, work: Iterable[object]) -> None:
        stages[name] = rate(name, lanes.rows, work)

    stages: dict[str, dict[str, int]] = {}
    stage("parquet alone", (files[g.path].read_row_group(g.group, use_threads=False) for g in groups))
    stage("decode and check", (decode(files[g.path], g, columns, refuse=True) for g in groups))
    stage("+ mix into steps", reader.steps(0, range(lanes.steps)))
    contenders = {"HID": item_tables(model.item, manifest, None), "HID + 5 SID": sid_coord_tables(items)}
    for name, tables in contenders.items():
        for count in dict.fromkeys((0, workers)):
            changed = replace(data, workers=count)
            loader = open_split(
                changed, model, "train", rank=0, world=1, seed=0, shuffle=True, tables=tables, manifest=manifest
            )
            if count:
                next(loader.batches(0))  # starts the workers: once per run, not per row
            stage(f"+ batches, {name}, {count} workers", loader.batches(0))
    return stages


if __name__ == "__main__":
    main()
