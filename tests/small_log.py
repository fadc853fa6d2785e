"""A small data folder with a catalog, and a recipe for it, for tests of training.

Labels follow clusters: a row is positive where the target and the oldest history item share their first code.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.config import Recipe
from sidrec.config.load import parse
from sidrec.schema import ITEMS, LOG, LogFile, Manifest, log_schema, save_manifest
from sidrec.sid.catalog import Catalog

USERS, ITEMS_COUNT, HISTORY = 40, 60, 6


def write_small_log(folder: Path, rows: int = 600, seed: int = 0) -> Path:
    """Writes FOLDER/data and FOLDER/catalog: splits train (`rows`) and test (a third as many). Returns FOLDER."""
    random = np.random.default_rng(seed)
    codes_IL = random.integers(0, 4, size=(ITEMS_COUNT + 1, 3))
    Catalog(np.arange(1, ITEMS_COUNT + 1), codes_IL[1:], (4, 4, 4)).save(folder / "catalog")
    ids = {"user_id": USERS + 1, "item_id": ITEMS_COUNT + 1, "cat_a": 5}
    splits = {"train": (LogFile("train/part-0.parquet", rows, 0, rows - 1),)}
    splits["test"] = (LogFile("test/part-0.parquet", rows // 3, rows, rows + rows // 3 - 1),)
    stats = ("stat_exposures", "stat_clicks")
    manifest = Manifest("small log", seed, ids, ("int_a", "int_b"), stats, HISTORY, splits)
    for split in splits:
        table = _rows(manifest, split, codes_IL, random)
        path = folder / "data" / LOG / splits[split][0].path
        path.parent.mkdir(parents=True)
        pq.write_table(table, path, row_group_size=50)
        if split == "train":
            impressions = np.bincount(table["item_id"].to_numpy(), minlength=ITEMS_COUNT + 1)[1:]
    items = {"item_id": np.arange(1, ITEMS_COUNT + 1), "train_impressions": impressions}
    pq.write_table(pa.table(items), folder / "data" / ITEMS)
    save_manifest(manifest, folder / "data" / LOG)
    return folder


def _rows(manifest: Manifest, split: str, codes_IL: np.ndarray, random: np.random.Generator) -> pa.Table:
    file = manifest.files(split)[0]
    item = random.zipf(1.5, size=file.rows) % ITEMS_COUNT + 1
    lengths = random.integers(0, HISTORY + 1, size=file.rows)
    history = [random.integers(1, ITEMS_COUNT + 1, size=n) for n in lengths]
    liked = [n > 0 and codes_IL[i, 0] == codes_IL[h[0], 0] for i, h, n in zip(item, history, lengths, strict=True)]
    columns = {
        "label": np.array(liked, dtype=np.float32),
        "timestamp": np.arange(file.first_timestamp, file.last_timestamp + 1),
        "user_id": random.integers(1, USERS + 1, size=file.rows),
        "item_id": item,
        "int_a": random.normal(size=file.rows).astype(np.float32),
        "int_b": random.normal(size=file.rows).astype(np.float32),
        "cat_a": random.integers(0, 5, size=file.rows),
        "history": [list(map(int, h)) for h in history],
        "stat_exposures": random.integers(0, 1000, size=file.rows).astype(np.float32),
        "stat_clicks": random.integers(0, 100, size=file.rows).astype(np.float32),
    }
    return pa.table(columns, schema=log_schema(manifest))


def small_recipe(folder: Path, **sections: object) -> Recipe:
    """A recipe for that log; `sections` are merged over it, as in small_recipe(f, train={"epochs": 3})."""
    tree: dict[str, dict[str, object]] = {
        "data": {
            "path": str(folder / "data"),
            "catalog": str(folder / "catalog"),
            "batch_size": 64,
            "history_length": 4,
            "lanes": 4,
            "shuffle_rows": 100,
            "workers": 0,
        },
        "model": {"embedding_dim": 8, "context": ["user_id", "cat_a"]},
        "train": {"runs": str(folder / "runs"), "epochs": 2, "log_every": 5},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section  # type: ignore[assignment]
    return parse({"name": "small", **tree}, "test")
