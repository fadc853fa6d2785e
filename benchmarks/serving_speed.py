"""CPU time of a request and of batch scoring, SID-Coord against its twins, on bundles of real runs.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.serving_speed SET [--rounds 40] [--write]

SET is one of the claim's (data/claim, `benchmarks.claim_data`). The variants are trained with the settings that the
claim's search found best, and exported with half-precision vectors; runs and bundles that are there are used again.

A request has C candidates, drawn by popularity from the last rows of the log, and the T latest items of a real user of
test whose history is that long, repeated where none is. All bundles answer the same requests in turn, in one process,
with one thread. Counted is the process's CPU time: on a shared machine wall time says more of others. A cell has the
median and the 99th percentile over rounds; ratios are over the twin of HIDs alone, of each round, with the middle 80%.

Batch scoring: rows a CPU second of `sidrec score`'s own path from a Parquet file of test's rows with source ids, to
probabilities, without writing them.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from benchmarks import RESULTS
from benchmarks.results_page import tuned_study
from benchmarks.tables import markdown_table
from sidrec.cli.dispatch import main as sidrec
from sidrec.config.load import load_mapping
from sidrec.id_maps import source_ids
from sidrec.io.files import write_json, write_text
from sidrec.schema import ITEM_ID, LOG, USER_ID
from sidrec.serve.batch_scoring import score_table
from sidrec.serve.bundle import Bundle
from sidrec.serve.scorer import Model
from sidrec.study.jobs import variant_recipe
from sidrec.study.results import conditions

WORK = Path("runs/serving_speed")
VARIANTS = ("hid_only", "sid_only", "published", "recommended")
TWIN = "hid_only"
SHAPES = ((100, 20), (100, 50), (500, 20), (500, 50), (2000, 20), (2000, 50))
"""Candidates and history positions."""
LATEST = 50_000
"""Rows that candidates are drawn from."""
WARM_UP = 3
IDS = (USER_ID, ITEM_ID)


def bundle_of(name: str, variant: str) -> Path:
    """The bundle of a variant; trains and exports where it is not there yet. Raises RuntimeError if that fails."""
    recipe = variant_recipe(tuned_study("claim"), name, variant)
    data = {**recipe["data"], "catalog": str(WORK / name / "catalog"), "history_length": max(t for _, t in SHAPES)}
    recipe |= {"name": variant, "data": data, "train": {**recipe["train"], "runs": str(WORK / name)}}
    file, bundle = WORK / name / f"{variant}.yaml", WORK / name / f"{variant}-bundle"
    if not bundle.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, yaml.safe_dump(recipe, sort_keys=False))
        commands = [["train", str(file)], ["export", str(WORK / name / variant / "seed0"), str(bundle)]]
        if not (WORK / name / "catalog").exists():
            commands.insert(0, ["fit", str(file)])
        for command in commands:
            if sidrec(command):
                raise RuntimeError(f"sidrec {' '.join(command)} failed")
    return bundle


class Requests:
    """Real users, histories and candidates of a set's test split, with source ids."""

    def __init__(self, folder: Path) -> None:
        self.rows = pq.read_table(folder / LOG / "test").sort_by("timestamp")
        self._source = {column: np.array(source_ids(folder, column).to_pylist(), dtype=object) for column in IDS}
        names = self.rows.column_names
        self._statistics = [name for name in names if name.startswith("stat_")]
        self._dense = [name for name in names if name.startswith("int_")]
        self._length_N = pc.list_value_length(self.rows["history"]).to_numpy()
        self._random = np.random.default_rng(0)

    def draw(self, candidates: int, positions: int) -> dict[str, Any]:
        """The arguments of `Model.rank`."""
        long_N = np.flatnonzero(self._length_N >= min(positions, self._length_N.max()))
        row = int(self._random.choice(long_N))
        history_T = np.resize(np.array(self.rows["history"][row].as_py()), positions)
        first = max(0, len(self.rows) - LATEST)
        taken = self.rows.take(pa.array(self._random.integers(first, len(self.rows), candidates)))
        return {
            "user": self.source(USER_ID, self.rows[USER_ID][row].as_py()),
            "candidates": list(self.source(ITEM_ID, taken[ITEM_ID].to_numpy())),
            "history": list(self.source(ITEM_ID, history_T)),
            "statistics": {name: taken[name].to_numpy() for name in self._statistics},
            "dense": {name: self.rows[name][row].as_py() for name in self._dense},
        }

    def source(self, column: str, dense: Any) -> Any:
        """Source ids of dense ids."""
        return self._source[column][np.asarray(dense) - 1]

    def table(self) -> pa.Table:
        """All rows as `sidrec score` takes them."""
        history = self.rows["history"].combine_chunks()
        lists = pa.ListArray.from_arrays(
            history.offsets, pa.array(self.source(ITEM_ID, history.values.to_numpy()), pa.string())
        )
        columns = {column: pa.array(self.source(column, self.rows[column].to_numpy()), pa.string()) for column in IDS}
        numbers = {name: self.rows[name] for name in (*self._statistics, *self._dense)}
        return pa.table({**columns, "history": lists, **numbers})


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of the process."""
    before = time.process_time()
    call()
    return time.process_time() - before


def latency(models: Mapping[str, Model], requests: Requests, rounds: int) -> list[dict[str, Any]]:
    """A line for each shape: variant -> CPU milliseconds of each round."""
    found = []
    for candidates, positions in SHAPES:
        of_variant: dict[str, list[float]] = {name: [] for name in models}
        for number in range(WARM_UP + rounds):
            asked = requests.draw(candidates, positions)
            for name in turned(list(models), number):
                seconds = cpu_seconds(lambda model=models[name], asked=asked: model.rank(**asked))  # type: ignore[misc]
                if number >= WARM_UP:
                    of_variant[name].append(1000 * seconds)
        found.append({"candidates": candidates, "history": positions, "cpu_ms": of_variant})
        print(f"{candidates} candidates, {positions} history positions: done", file=sys.stderr)
    return found


def batch(models: Mapping[str, Model], requests: Requests, rounds: int) -> dict[str, list[float]]:
    """Variant -> rows a CPU second, of each round."""
    table = requests.table()
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(1 + rounds):
        for name in turned(list(models), number):
            seconds = cpu_seconds(lambda model=models[name]: score_table(model, table, "test"))  # type: ignore[misc]
            if number:
                found[name].append(len(table) / seconds)
    return found


def turned(names: list[str], number: int) -> list[str]:
    """The names, beginning with another one each time."""
    return names[number % len(names) :] + names[: number % len(names)]


def report(found: Mapping[str, Any]) -> str:
    """Markdown: a table of latencies and one of batch scoring."""
    lines = []
    for line in found["latency"]:
        twin = np.array(line["cpu_ms"][TWIN])
        for name, values in line["cpu_ms"].items():
            ratio = np.array(values) / twin
            low, high = np.quantile(ratio, [0.1, 0.9])
            tail = np.quantile(values, 0.99) / np.quantile(twin, 0.99)
            times = [f"{np.median(values):.2f}", f"{np.quantile(values, 0.99):.2f}"]
            ratios = [f"{np.median(ratio):.2f} [{low:.2f}, {high:.2f}]", f"{tail:.2f}"]
            lines.append([line["candidates"], line["history"], f"`{name}`", *times, *ratios])
    head = ["candidates", "history", "variant", "CPU ms, median", "99%", "of the twin's", "of the twin's 99%"]
    rows = [
        [f"`{name}`", f"{np.median(values):,.0f}", f"{min(values):,.0f}"] for name, values in found["batch"].items()
    ]
    facts = found["conditions"]
    return "\n\n".join(
        [
            f"# Serving: {found['set']}",
            f"`python -m benchmarks.serving_speed {found['set']} --write`, whose docstring has the conditions; "
            f"{found['rounds']} rounds, {facts['cpu']}, one thread, onnxruntime {found['onnxruntime']}, half-precision "
            f"vectors, commit {facts['commit']}.",
            markdown_table(head, lines),
            f"Batch scoring of {found['rows']:,} rows, histories of up to {SHAPES[-1][1]} positions:",
            markdown_table(["variant", "rows a CPU second, median", "lowest"], rows),
        ]
    )


def record(folder: Path, found: Mapping[str, Any], text: str) -> None:
    """Writes the figures of a set, and their report."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{found['set']}.json", found)
    write_text(folder / f"{found['set']}.md", text + "\n")


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("set", choices=["beauty", "yelp"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--write", action="store_true", help="record results/serving_speed/SET.{json,md}")
    options = parser.parse_args(argv)
    models = {name: Model(Bundle(bundle_of(options.set, name)), threads=1) for name in VARIANTS}
    requests = Requests(Path(load_mapping(WORK / options.set / f"{TWIN}.yaml", "a recipe")["data"]["path"]))
    found = {
        "set": options.set,
        "rounds": options.rounds,
        "conditions": dict(conditions()),
        "onnxruntime": version("onnxruntime"),
        "latency": latency(models, requests, options.rounds),
        "rows": len(requests.rows),
        "batch": batch(models, requests, 5),
    }
    print(report(found))
    if options.write:
        record(RESULTS / "serving_speed", found, report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
