"""A folder that commands run in: inputs, outputs of ours in every state, and what belongs to others."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sidrec.bench.page import write_page
from sidrec.bench.result import load_bench
from sidrec.config import save
from sidrec.schema import ITEMS
from tests.checkpoint.made_up_checkpoint import HID, grid, numbered, write_checkpoint
from tests.soak.fuzz import entries, sound_files

OUTSIDE = "outside.txt"  # beside the world
TINY = ("--rows", "1000", "--users", "20", "--items", "90", "--width", "24")

SOUND: Mapping[str, tuple[str, ...]] = {
    "init": ("demo", "new.yaml"),
    "prep movielens": ("raw", "new", "--vectors", "none"),
    "prep amazon": ("amazon", "new", "--vectors", "none"),
    "prep interactions": ("log.csv", "new", "--rating-column", "rating", "--items-file", "items.csv"),
    "prep synthetic": ("new", *TINY),
    "prep criteo": ("train.txt", "new"),
    "prep criteo-log": ("npy", "new", "--item", "C10", "--width", "2"),
    "prep adopt": ("data", "--check"),
    "prep item-vectors": ("data", "--from", "v.npy"),
    "prep behavior": ("data",),
    "fit": ("recipe.yaml",),
    "train": ("recipe.yaml",),
    "evaluate": ("run", "test"),
    "study": ("study.yaml",),
    "study --report": ("study.yaml",),
    "report": ("run", "--out", "new.html"),
    "compare": ("run", "run_and_notes", "--html", "new.html"),
    "table list": ("run",),
    "table export": ("run", "hid", "new.parquet"),
    "plan": ("tables.yaml", "--export", "new.json"),
    "bench plans": ("tables.yaml", "--plans", "auto", "--out", "new"),
    "bench calibrate": ("bench.json", "--out", "new.json"),
    "bench page": ("bench.json", "new.html"),
    "recipe explain": ("model.item",),
    "recipe show": ("recipe.yaml",),
    "schema": (),
    "doctor": (),
}
"""Commands, with arguments that they accept."""
NEEDS_MUTATION = ("prep behavior", "fit", "train", "study", "bench plans", "doctor")
"""Commands whose sound arguments take seconds of work: they always get wrong ones."""
REPLACES: Mapping[str, tuple[str, ...]] = {
    **{command: ("data", "npy") for command in SOUND if command.startswith("prep ")},
    "prep adopt": tuple(
        f"{data}/{name}" for data in ("data", "data_and_notes") for name in (ITEMS, "log/manifest.json")
    ),
    "prep item-vectors": ("data/items.parquet", "data_and_notes/items.parquet", "items.parquet"),
    "prep behavior": ("data", "data_and_notes/items.parquet"),
    "fit": ("catalog",),
    "table export": ("table.parquet",),
    "plan": ("plan.json",),
    "bench plans": ("bench.json", "bench.html"),
    "bench calibrate": ("calibration.json",),
    "bench page": ("bench.html",),
    "study --report": ("results",),
    "report": ("run/report.html", "run_and_notes/report.html"),
    "study": ("results", "runs"),
    "evaluate": ("run",),
    "train": ("run",),
}
"""Command -> what of the world it may replace, where it ends well."""
INPLACE = (
    "prep adopt",
    "prep item-vectors",
    "prep behavior",
    "plan",
    "bench calibrate",
    "bench page",
    "study --report",
    "evaluate",
)
"""Commands that replace what is theirs without --overwrite."""


def make_world(world: Path) -> None:
    """Fills a folder. Paths in its files are relative: commands run in it."""
    world.mkdir(parents=True)
    (world.parent / OUTSIDE).write_text("mine")
    _inputs(world)
    _ours(world)
    _of_others(world)


def _inputs(world: Path) -> None:
    _made(world, sound_files.interactions)
    _made(world, sound_files.movielens)
    _made(world, sound_files.amazon_csv, raw="amazon")
    _made(world, sound_files.criteo)
    _made(world, sound_files.tables)
    np.save(world / "v.npy", np.ones((sound_files.THINGS, 4), np.float32))
    (world / "study.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "study",
                "work": "runs",
                "results": "results",
                "runs": [0],
                "datasets": {"toy": "recipe.yaml"},
                "variants": {"a": {}, "b": {"seed": 4}},
                "references": ["a"],
                "command": ["false"],
            }
        )
    )


def _made(world: Path, make: Callable[[Path], None], raw: str = "raw") -> None:
    """Moves what a maker of sound files makes into the world. raw: the name of its folder `raw` there."""
    scratch = world / "scratch"
    scratch.mkdir()
    make(scratch)
    for path in scratch.iterdir():
        target = world / (raw if path.name == "raw" else path.name)
        if not target.exists():
            path.rename(target)
    shutil.rmtree(scratch)


def _ours(world: Path) -> None:
    for make in (
        sound_files.log_and_catalog,
        sound_files.criteo_npy,
        sound_files.plan,
        sound_files.calibration,
        sound_files.bench_to_calibrate,
    ):
        _made(world, make)
    write_page(load_bench(world / "bench.json"), world / "bench.html")
    recipe = entries.recipe_of(world)
    save(recipe, world / "recipe.yaml")
    text = (world / "recipe.yaml").read_text().replace(str(world), ".")
    (world / "recipe.yaml").write_text(text.replace("vectors: []", "vectors: [text]"))
    write_checkpoint(world / "run" / "checkpoints" / "step-7", {HID: grid(numbered(13, 4), 1, 1)})
    shutil.copy(world / "recipe.yaml", world / "run" / "config.yaml")
    table = {"row": pa.array(range(3)), "embedding": pa.array([[1.0]] * 3, pa.list_(pa.float32(), 1))}
    pq.write_table(pa.table(table), world / "table.parquet")


def _of_others(world: Path) -> None:
    (world / "notes.txt").write_text("mine")
    (world / "mine.json").write_text(json.dumps({"version": 1}))
    (world / "empty").mkdir()
    (world / "photos" / "2024").mkdir(parents=True)
    (world / "photos" / "2024" / "a.jpg").write_bytes(b"\xff\xd8")
    for name in ("data", "catalog", "run"):
        shutil.copytree(world / name, world / f"{name}_and_notes")
        (world / f"{name}_and_notes" / "notes.txt").write_text("mine")
    shutil.copy(world / "data" / ITEMS, world / "items.parquet")
    for name, target in {"data": "data", "photos": "photos", "notes": "notes.txt", "nothing": "nowhere"}.items():
        (world / f"link_to_{name}").symlink_to(target)
    (world / "loop").symlink_to("loop")
    (world / "linked").mkdir()
    (world / "linked" / "photos").symlink_to("../photos")
    (world / "half.partial").mkdir()
    (world / "half.partial" / "notes.txt").write_text("mine")
    (world / "file.partial").write_text("mine")
    for name in (".new.lock", ".locked.lock", ".catalog.fit", ".new.json.lock"):
        (world / name).write_text("mine")
    (world / ".locked.former-1").mkdir()
    (world / ".locked.former-1" / "notes.txt").write_text("mine")
