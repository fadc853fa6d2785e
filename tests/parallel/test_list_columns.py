"""Two ranks learn what one process learns from a column of lists, which the recipe's other label depends on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sidrec.config import Recipe
from sidrec.schema import LOG, ListColumn, load_manifest, log_schema, save_manifest
from tests.parallel.test_sharding import train_every_type
from tests.ranks import run_on_ranks
from tests.small_log import small_recipe, write_small_log

TYPES = ("data_parallel", "row_wise")
TAGS = 9


def write_log_with_tags(folder: Path, rows: int) -> Path:
    """A small log with up to three tags a row; label_tagged is 1 where one of the first four is among them."""
    write_small_log(folder, rows=rows)
    log = folder / "data" / LOG
    manifest = load_manifest(log)
    random = np.random.default_rng(1)
    wider = replace(
        manifest,
        ids={**manifest.ids, "cat_tags": TAGS},
        labels=("label_tagged",),
        lists={"cat_tags": ListColumn(3, 1.5)},
    )
    for file in (*manifest.files("train"), *manifest.files("test")):
        table = pq.read_table(log / file.path)
        tags = [random.integers(1, TAGS, size=random.integers(0, 4)).tolist() for _ in range(len(table))]
        tagged = np.array([min(tag, default=TAGS) < 5 for tag in tags], np.float32)
        table = table.append_column("cat_tags", pa.array(tags, pa.list_(pa.int64()))).append_column(
            "label_tagged", [tagged]
        )
        pq.write_table(table.select(log_schema(wider).names), log / file.path, row_group_size=50)
    save_manifest(wider, log)
    return folder


def recipe_of(folder: Path, label: str) -> Recipe:
    return small_recipe(
        folder,
        data={"label": label},
        model={"context": ["cat_tags", "user_id", "cat_a"]},
        optimizer={"tables": {"kind": "adagrad", "lr": 0.1}, "dense": {"lr": 0.02}},
    )


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    recipe = recipe_of(write_log_with_tags(tmp_path, 500), "label_tagged")
    alone = run_on_ranks(1, train_every_type, recipe, ("table_wise",))[0]["table_wise"]
    tagged = torch.from_numpy(pq.read_table(tmp_path / "data" / LOG / "test")["label_tagged"].to_numpy())
    assert alone[tagged > 0].mean() - alone[tagged == 0].mean() > 1, "the model learns the label from the tags"
    first, second = run_on_ranks(2, train_every_type, recipe, TYPES)
    for sharding in TYPES:
        torch.testing.assert_close(first[sharding], second[sharding], rtol=0, atol=0)
        torch.testing.assert_close(first[sharding], alone, rtol=5e-5, atol=2e-5)  # scores of up to 5
