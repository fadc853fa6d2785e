"""Sound files of every kind, to be broken: raw logs of every layout, data folders, recipes, catalogs, plans."""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.recorded_benches import recorded
from data_prep.criteo_rows import CATEGORICAL, DENSE
from data_prep.item_vectors import add_vectors
from sidrec.config import save
from sidrec.config.learner_parts import Training
from sidrec.config.learners import Learner, ResidualKMeansConfig, RqVaeConfig, TokenizerConfig
from sidrec.metrics.exact import QUALITY
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.slices import SLICES
from sidrec.plans.calibration import VERSION, Calibration, UnitCosts, save_calibration
from sidrec.plans.cost import KINDS
from sidrec.plans.plan_file import PlanFile, TableLayout, write_plan
from sidrec.schema import ITEM_ID, ITEMS, OTHER_ID, PAIRS
from sidrec.sid.catalog import Catalog
from sidrec.sid.learners.registry import fit_tokenizer, save_tokenizer
from sidrec.sid.tokenizer import SideInformation
from tests.soak.fuzz import entries

USERS, THINGS, EVENTS, DAY = 12, 15, 150, 86_400
WIDTH = 8  # of item vectors
CRITEO_ROWS = 60


def events() -> Iterator[tuple[str, str, int, float]]:
    """User, item, time and stars, in the order of time."""
    random = np.random.default_rng(0)
    for number in range(EVENTS):
        user, thing = random.integers(USERS), random.zipf(1.3) % THINGS
        yield f"u{user}", f"i{thing}", 1_000_000_000 + number * DAY // 3, float(random.integers(2, 11)) / 2


def _lines(rows: Iterable[tuple[object, ...]], separator: str = ",") -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def interactions(folder: Path) -> None:
    """CSV: log.csv and items.csv."""
    (folder / entries.LOG_CSV).write_text("user_id,item_id,timestamp,rating\n" + _lines(events()))
    things = [(f"i{thing}", f'"Thing, number {thing}"', f"kind{thing % 3}") for thing in range(THINGS)]
    (folder / entries.ITEMS_CSV).write_text("item_id,title,kind\n" + _lines(things))


def interactions_parquet(folder: Path) -> None:
    columns = dict(zip(("user_id", "item_id", "timestamp", "rating"), zip(*events(), strict=True), strict=True))
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), folder / entries.LOG_PARQUET)


def movielens(folder: Path) -> None:
    ratings = [(user[1:], thing[1:], stars, time) for user, thing, time, stars in events()]
    movies = [(thing, f'"Film, The {thing} ({1980 + thing})"', "Comedy|Drama") for thing in range(THINGS)]
    (_raw(folder) / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + _lines(ratings))
    (_raw(folder) / "movies.csv").write_text("movieId,title,genres\n" + _lines(movies))


def movielens_dat(folder: Path) -> None:
    ratings = [(user[1:], thing[1:], stars, time) for user, thing, time, stars in events()]
    movies = [(thing, f"Film {thing} (1990)", "Comedy|Drama") for thing in range(THINGS)]
    (_raw(folder) / "ratings.dat").write_text(_lines(ratings, "::"))
    (_raw(folder) / "movies.dat").write_bytes(_lines(movies, "::").encode("latin-1"))


def amazon_csv(folder: Path) -> None:
    log = "user_id,item_id,timestamp\n" + _lines([event[:3] for event in events()])
    things = [(f"i{thing}", f"Soap {thing}", "Opi", "Beauty|Bath") for thing in range(THINGS)]
    _compressed(_raw(folder) / "interactions.csv.gz", log)
    _compressed(_raw(folder) / "items.csv.gz", "item_id,title,brand,categories\n" + _lines(things))


def amazon_json(folder: Path) -> None:
    """2014: reviews as JSON, metadata as Python literals."""
    keys = ("reviewerID", "asin", "unixReviewTime", "overall")
    reviews = [json.dumps(dict(zip(keys, event, strict=True))) for event in events()]
    things = [
        {"asin": f"i{thing}", "title": f"It's soap {thing}", "brand": "Opi", "categories": [["Beauty", "Bath"]]}
        for thing in range(THINGS)
    ]
    _compressed(_raw(folder) / "reviews_Toys_5.json.gz", "\n".join(reviews) + "\n")
    _compressed(_raw(folder) / "meta_Toys.json.gz", "\n".join(map(repr, things)) + "\n")


def _raw(folder: Path) -> Path:
    """Where raw files lie that a command finds by their folder, which is no place for its output."""
    raw = folder / entries.RAW
    raw.mkdir(exist_ok=True)
    return raw


def _compressed(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def criteo(folder: Path) -> None:
    random = np.random.default_rng(1)
    rows = []
    for _ in range(CRITEO_ROWS):
        dense = [str(random.integers(-2, 500)) if random.random() < 0.8 else "" for _ in DENSE]
        values = [f"{random.geometric(0.3) * 2654435:08x}" if random.random() < 0.9 else "" for _ in CATEGORICAL]
        rows.append((random.integers(2), *dense, *values))
    (folder / entries.CRITEO_TEXT).write_text(_lines(rows, "\t"))


def criteo_npy(folder: Path) -> None:
    """What data_prep.criteo makes of it."""
    criteo(folder)
    entries.criteo(folder)
    (folder / entries.CRITEO_TEXT).unlink()
    (folder / entries.OUT).rename(folder / entries.NPY)


def data(folder: Path) -> None:
    """What data_prep makes of interactions, with vectors and pairs."""
    interactions(folder)
    entries.interactions(folder)
    for name in (entries.LOG_CSV, entries.ITEMS_CSV):
        (folder / name).unlink()
    (folder / entries.OUT).rename(folder / entries.DATA)
    vectors = folder / "vectors.npy"
    np.save(vectors, np.random.default_rng(2).normal(size=(THINGS, WIDTH)).astype(np.float32))
    for column in ("text", "behavior"):
        add_vectors(folder / entries.DATA / ITEMS, str(vectors), column)
    vectors.unlink()
    pairs = {ITEM_ID: list(range(1, THINGS)), OTHER_ID: list(range(2, THINGS + 1))}
    pq.write_table(pa.table(pairs), folder / entries.DATA / PAIRS)


# Recipes, catalogs, tokenizers, plans, calibrations, benches and predictions.

BENCH = "amazon_beauty-2"
CODEBOOK = 4


def catalog(folder: Path) -> None:
    codes_NL = np.random.default_rng(3).integers(0, CODEBOOK, (THINGS, 3))
    weights_NL = np.full((THINGS, 3), 0.5, np.float32)
    Catalog(np.arange(1, THINGS + 1), codes_NL, (CODEBOOK,) * 3, weights_NL).save(folder / entries.CATALOG)


def log_and_catalog(folder: Path) -> None:
    data(folder)
    catalog(folder)


def tokenizers(folder: Path) -> None:
    """One that is arrays alone, and a network."""
    vectors_NV = np.random.default_rng(4).normal(size=(THINGS, WIDTH)).astype(np.float32)
    training = Training(epochs=1, batch_size=THINGS)
    network = RqVaeConfig(levels=2, codebook_size=CODEBOOK, width=4, hidden=(6,), training=training)
    learners: tuple[Learner, ...] = (ResidualKMeansConfig(levels=2, codebook_size=CODEBOOK), network)
    for name, learner in zip(entries.TOKENIZERS, learners, strict=True):
        config = TokenizerConfig(learner=learner)
        save_tokenizer(fit_tokenizer(vectors_NV, config, SideInformation()), config, folder / name)


def recipe(folder: Path) -> None:
    save(entries.recipe_of(folder), folder / entries.RECIPE)
    text = (folder / entries.RECIPE).read_text()
    (folder / entries.RECIPE).write_text(text.replace(str(folder), "."))


def tables(folder: Path) -> None:
    lines = ["name: three", "rows_per_step: 64", "tables:", "- {name: item, rows: 1000, width: 16, features: 2}"]
    lines += ["- {name: user, rows: 500, width: 8, ids_per_bag: 3.5}", "- {name: place, rows: 10, width: 4, zipf: 0}"]
    (folder / entries.TABLES).write_text("\n".join(lines) + "\n")


def plan(folder: Path) -> None:
    layouts = {
        "item": TableLayout(rows=100, width=16, sharding_type="row_wise", compute_kernel="fused", ranks=(0, 1)),
        "user": TableLayout(rows=50, width=16, sharding_type="column_wise", compute_kernel="fused", ranks=(0, 1)),
        "place": TableLayout(rows=10, width=16, sharding_type="table_wise", compute_kernel="fused", ranks=(1,)),
    }
    write_plan(folder / entries.PLAN, PlanFile(world=2, local_world=2, device="cpu", tables={"tables": layouts}))


def calibration(folder: Path) -> None:
    fits = {world: UnitCosts(dict.fromkeys(KINDS, 0.5), 8, ["a", "b"], 0.1) for world in (2, 4)}
    save_calibration(folder / entries.CALIBRATION, Calibration(VERSION, "cpu", fits, {"commit": "x"}))


def bench(folder: Path) -> None:
    """Three plans of a recorded one."""
    result = recorded(BENCH)
    result["plans"] = result["plans"][:3]
    (folder / entries.BENCH).write_text(json.dumps(result, indent=1))


def bench_to_calibrate(folder: Path) -> None:
    """As many plans of different work as a calibration needs."""
    result, rng = recorded(BENCH), np.random.default_rng(0)
    first = result["plans"][0]
    result["plans"] = [
        {**first, "name": f"{n}", "plan": {}, "work": {kind: (1 + rng.random(2)).tolist() for kind in first["work"]}}
        for n in range(16)
    ]
    (folder / entries.BENCH).write_text(json.dumps(result, indent=1))


def predictions(folder: Path) -> None:
    rows = np.arange(40)
    scores = np.linspace(-1, 1, 40, dtype=np.float32)
    Predictions("test", rows, rows % 5, rows % 7, (rows % 2).astype(np.float32), scores).save(folder / entries.SCORES)
    slices = {name: {"rows": 3, **dict.fromkeys(QUALITY, 0.5)} for name in SLICES}
    (folder / entries.METRICS).write_text(json.dumps({"test": slices}))
