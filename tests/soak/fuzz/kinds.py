"""The kinds of files: how a sound one is made, who reads it, which damage makes sense."""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sidrec.schema import ITEMS, PAIRS
from tests.soak.fuzz import checkpoints, entries, sound_files
from tests.soak.fuzz.mutations import BYTES, JSON, TEXT, YAML, Mutation
from tests.soak.fuzz.parquet_mutations import PARQUET

MUTATIONS: Mapping[str, Mapping[str, Mutation]] = {
    "bytes": BYTES,
    "text": TEXT,
    "json": JSON,
    "yaml": YAML,
    "parquet": PARQUET,
}


@dataclass(frozen=True)
class Kind:
    """make: fills a folder. read: the product's entry. files: what is broken, each with its form.

    A form names the families of MUTATIONS with spaces between; "gzip" before them breaks what is inside the file.
    weight: share of the cases.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], None]
    files: Mapping[str, str]
    weight: int = 2


LOG = f"{entries.DATA}/log"
PLAIN, TREE, PARQUET_FILE, ZIPPED = "bytes text", "bytes text json", "bytes parquet", "bytes gzip text"
FOLDER = checkpoints.CHECKPOINTS
STORED = {
    **{f"{FOLDER}/step-{checkpoints.STEPS[0]}/{name}.json": TREE for name in ("index", "position")},
    f"{FOLDER}/step-{checkpoints.STEPS[0]}/rank-0.safetensors": "bytes",
}
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "log",
            sound_files.log_and_catalog,
            entries.log,
            {f"{LOG}/{split}/part-00000.parquet": PARQUET_FILE for split in ("train", "test")},
            8,
        ),
        Kind("manifest", sound_files.log_and_catalog, entries.log, {f"{LOG}/manifest.json": TREE}, 6),
        Kind(
            "items",
            sound_files.data,
            entries.items,
            {f"{entries.DATA}/{name}": PARQUET_FILE for name in (ITEMS, PAIRS)},
            5,
        ),
        Kind(
            "interactions (CSV)",
            sound_files.interactions,
            entries.interactions,
            {entries.LOG_CSV: PLAIN, entries.ITEMS_CSV: PLAIN},
        ),
        Kind(
            "interactions (parquet)",
            sound_files.interactions_parquet,
            entries.interactions_parquet,
            {entries.LOG_PARQUET: PARQUET_FILE},
        ),
        Kind(
            "MovieLens (CSV)",
            sound_files.movielens,
            entries.movielens,
            {f"{entries.RAW}/ratings.csv": PLAIN, f"{entries.RAW}/movies.csv": PLAIN},
        ),
        Kind(
            "MovieLens (::)",
            sound_files.movielens_dat,
            entries.movielens,
            {f"{entries.RAW}/ratings.dat": PLAIN, f"{entries.RAW}/movies.dat": PLAIN},
        ),
        Kind(
            "Amazon (CSV)",
            sound_files.amazon_csv,
            entries.amazon,
            {f"{entries.RAW}/interactions.csv.gz": ZIPPED, f"{entries.RAW}/items.csv.gz": ZIPPED},
        ),
        Kind(
            "Amazon (JSON)",
            sound_files.amazon_json,
            entries.amazon,
            {f"{entries.RAW}/reviews_Toys_5.json.gz": ZIPPED, f"{entries.RAW}/meta_Toys.json.gz": ZIPPED},
        ),
        Kind("Criteo (text)", sound_files.criteo, entries.criteo, {entries.CRITEO_TEXT: PLAIN}),
        Kind(
            "Criteo (npy)",
            sound_files.criteo_npy,
            entries.criteo_npy,
            {
                f"{entries.NPY}/manifest.json": TREE,
                **{f"{entries.NPY}/day_0_{kind}.npy": "bytes" for kind in ("dense", "sparse", "labels")},
            },
        ),
        Kind("recipe", sound_files.recipe, entries.recipe, {entries.RECIPE: "bytes text yaml"}, 6),
        Kind("tables file", sound_files.tables, entries.tables, {entries.TABLES: "bytes text yaml"}, 3),
        Kind(
            "catalog",
            sound_files.catalog,
            entries.catalog,
            {f"{entries.CATALOG}/codes.parquet": PARQUET_FILE, f"{entries.CATALOG}/catalog.json": TREE},
            4,
        ),
        Kind(
            "tokenizer",
            sound_files.tokenizers,
            entries.tokenizers,
            {
                **{f"{name}/tokenizer.json": TREE for name in entries.TOKENIZERS},
                **{f"{name}/arrays.safetensors": "bytes" for name in entries.TOKENIZERS},
            },
            3,
        ),
        Kind("plan", sound_files.plan, entries.plan, {entries.PLAN: TREE}, 5),
        Kind("calibration", sound_files.calibration, entries.calibration, {entries.CALIBRATION: TREE}, 3),
        Kind("bench page", sound_files.bench, entries.bench_page, {entries.BENCH: TREE}, 3),
        Kind("bench calibrate", sound_files.bench_to_calibrate, entries.bench_calibrate, {entries.BENCH: TREE}, 2),
        Kind("checkpoints", checkpoints.make, checkpoints.chosen_one, {**STORED, f"{FOLDER}/best.json": TREE}, 3),
        Kind("checkpoint, checksums not looked at", checkpoints.make, checkpoints.unchecked, STORED, 6),
        Kind("checkpoint's tables", checkpoints.make, checkpoints.tables, STORED, 4),
        Kind(
            "run directory",
            sound_files.predictions,
            entries.predictions,
            {entries.SCORES: PARQUET_FILE, entries.METRICS: TREE},
        ),
    )
}


def mutations(form: str) -> dict[str, Mutation]:
    """Family and name of a mutation -> what it does; of the families of a form."""
    found: dict[str, Mutation] = {}
    inside = False
    for word in form.split():
        if word == "gzip":
            inside = True
            continue
        for name, mutation in MUTATIONS[word].items():
            label = f"{word}: {name}"
            found[label] = mutation
            if inside:
                found[label] = _inside_gzip(mutation)
    return found


def _inside_gzip(mutation: Mutation) -> Mutation:
    return lambda content, random: gzip.compress(mutation(gzip.decompress(content), random), 1, mtime=0)
