"""Every command on the golden artifacts: its exit status, its words, and the files that it leaves."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from tests.golden import product
from tests.golden.files import changed, masked, snapshot, words
from tests.golden.losses import run
from tests.golden.raw import write_raw

PREP = ("synthetic", "behavior", "item_vectors", "movielens", "amazon", "interactions", "criteo", "criteo_log")
INTERACTIONS = (
    "interactions raw/interactions.csv made --vectors none --user-column who --item-column what "
    "--timestamp-column when --timestamp-unit ms --cat-columns device"
)


class Case(NamedTuple):
    """A command, those that must come before it, and how its words are to be compared."""

    line: str
    before: tuple[str, ...] = ()
    stdout: str = "words"
    """words: line by line; json: as JSON; names: the names of its JSON's entries; none: not at all."""
    ranks: int = 1


CASES = {
    "fit": Case("fit one.yaml --data.catalog new-catalog"),
    "fit_gradient": Case("fit weighted.yaml --data.catalog new-catalog"),
    "fit_again": Case("fit one.yaml"),
    "train": Case("train one.yaml --name new"),
    "train_on_two_ranks": Case("train two.yaml --name new", ranks=2),
    "evaluate": Case("evaluate runs/one/seed0"),
    "evaluate_a_checkpoint": Case("evaluate runs/one/seed0 validation test --checkpoint step-12"),
    "plan": Case("plan one.yaml --world 2 --ddr 128GiB --export new/plan.json"),
    "plan_json": Case("plan one.yaml --world 2 --ddr 128GiB --json", stdout="json"),
    "plan_tables": Case("plan tables.yaml --hardware 2xa100 --export new/plan.json --json", stdout="json"),
    "plan_forced": Case("plan tables.yaml --world 4 --ddr 128GiB --forced row_wise --json", stdout="json"),
    "plan_calibrated": Case(
        "plan tables.yaml --world 2 --ddr 128GiB --calibration calibration.json --json", stdout="json"
    ),
    "table_list": Case("table list runs/two/seed0"),
    "table_list_json": Case("table list runs/one/seed0 --json", stdout="json"),
    "table_export_parquet": Case("table export runs/one/seed0 hid hid.parquet --ids --optimizer"),
    "table_export_safetensors": Case("table export runs/two/seed0 hid hid.safetensors --optimizer"),
    "table_export_sid": Case("table export runs/one/seed0 s12 s12.parquet --ids"),
    "bench_plans": Case(
        "bench plans tables.yaml --plans auto,row_wise --rounds 1 --steps 1 --warm-up 1 --out new", stdout="none"
    ),
    "bench_calibrate": Case("bench calibrate bench.json --out new.json"),
    "bench_page": Case("bench page bench.json new.html"),
    "doctor": Case("doctor one.yaml --json", stdout="names"),
    "synthetic": Case(
        "synthetic made --rows 1300 --users 40 --items 60 --branching 4 --width 12 --history 6 --days 40"
    ),
    "behavior": Case("behavior data --width 8 --epochs 2 --blocks 1 --heads 1 --length 10 --pairs co_occurrence"),
    "item_vectors": Case("item_vectors data --from raw/vectors.npy --column text"),
    "movielens": Case("movielens raw/movielens made --vectors none --split per-user-last"),
    "amazon": Case("amazon raw/amazon made --vectors none"),
    "interactions": Case(f"{INTERACTIONS} --label-column bought"),
    "interactions_items_negatives": Case(
        f"{INTERACTIONS} --items-file raw/items.csv --items-id-column what --text-columns name --item-cat-columns shelf"
    ),
    "criteo": Case("criteo raw/criteo.txt made --threshold 2"),
    "criteo_hashed": Case("criteo raw/criteo.txt made --hash-rows 50"),
    "criteo_log": Case(
        "criteo_log npy made --item C10 --width 16", before=("criteo raw/criteo.txt npy --threshold 2",)
    ),
}
COMMANDS = sorted({case.line.split()[0] for case in CASES.values()} - set(PREP))
"""The commands of `sidrec` that are looked at."""


def record(name: str, folder: Path) -> dict[str, Any]:
    """Runs a case in `folder`, a copy of the artifacts.

    Returns: `status`, `stdout` where it is data, `files` that were written or changed, and the words as `said`.
    """
    case = CASES[name]
    write_raw(folder / "raw")
    with product.inside(folder):
        for line in case.before:
            run(_run(line, folder, 1))
        before = snapshot(folder)
        said = _run(case.line, folder, case.ranks)
        files = changed(folder, before)
    found: dict[str, Any] = {"files": files}
    if case.stdout != "names":  # the doctor's status is the machine's
        found = {"status": said.status, **found}
    if case.stdout in ("json", "names"):
        found["stdout"] = _data(said.out, case.stdout)
    streams = {"out": said.out if case.stdout == "words" else "", "err": said.err if case.stdout != "none" else ""}
    return found | {"said": {stream: words(text, folder) for stream, text in streams.items()}}


def listed_commands() -> list[str]:
    """The commands that `sidrec --help` names, whatever else it says."""
    return sorted(name for name in COMMANDS if re.search(rf"\b{name}\b", run(product.command(["--help"])).out))


def _run(line: str, folder: Path, ranks: int) -> product.Said:
    first, *rest = line.split()
    if first in PREP:
        return product.prepare(first, rest)
    return product.command([first, *rest]) if ranks == 1 else product.on_ranks(ranks, folder, [[first, *rest]])[0]


def _data(text: str, kind: str) -> Any:
    content = json.loads(text)
    return sorted(entry["name"] for entry in content) if kind == "names" else masked(content)
