"""Amazon in its layouts, as files the tests write, and the CSV form of Beauty."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.amazon import AmazonCommand
from data_prep.build import LogSettings
from sidrec import schema
from tests.data_prep.event_lists import DAY, read_rows

# user, item, day
REVIEWS = [("A", "p1", 10), ("A", "p2", 11), ("B", "p1", 12), ("C", "p3", 13), ("B", "p2", 14), ("C", "p1", 15)]


def write(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))


def folder_2014(folder: Path) -> None:
    reviews = [
        json.dumps({"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": day * DAY, "helpful": [0, 0]})
        for user, item, day in REVIEWS
    ]
    write(folder / "reviews_Toys_5.json.gz", reviews)
    products = [
        {"asin": "unseen", "title": "x"},
        {"asin": "p1", "title": "It's red", "brand": "Opi", "categories": [["Beauty", "Nails"], ["Other"]]},
        {"asin": "p2", "title": "Soap", "categories": [["Beauty", "Bath"]]},
    ]
    write(folder / "meta_Toys.json.gz", [repr(product) for product in products])  # Python literals, as published


def folder_2018(folder: Path) -> None:
    reviews = [
        json.dumps({"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": day * DAY})
        for user, item, day in REVIEWS
    ]
    write(folder / "Toys_5.json.gz", reviews)
    products = [
        {"asin": "p1", "title": "It's red", "brand": "Opi", "category": ["Beauty", "Nails"]},
        {"asin": "p2", "title": "Soap", "brand": "", "category": ["Beauty", "Bath"]},
        {"asin": "p1", "title": "again", "brand": "Opi", "category": []},
    ]
    write(folder / "meta_Toys.json.gz", [json.dumps(product) for product in products])


def folder_2023(folder: Path) -> None:
    reviews = [
        json.dumps(
            {"user_id": user, "asin": "variant", "parent_asin": item, "rating": 5, "timestamp": day * DAY * 1000 + 7}
        )
        for user, item, day in REVIEWS
    ]
    write(folder / "Toys.jsonl.gz", reviews)
    products = [
        {"parent_asin": "p1", "title": "It's red", "store": "Opi", "categories": ["Beauty", "Nails"]},
        {"parent_asin": "p2", "title": "Soap", "store": None, "categories": ["Beauty", "Bath"]},
    ]
    write(folder / "meta_Toys.jsonl.gz", [json.dumps(product) for product in products])


def folder_csv(folder: Path) -> None:
    numbers = {"p1": 1, "p2": 2, "p3": 3}
    users = {"A": 1, "B": 2, "C": 3}
    rows = [f"{users[user]},{numbers[item]},{day * DAY},0" for user, item, day in REVIEWS]
    write(folder / "interactions.csv.gz", ["user_id,item_id,timestamp,pos", *rows])
    products = ["1,a,It's red,Opi,Beauty|Nails,1.0,Beauty,3", "2,b,Soap,Unknown,Beauty|Bath,,,", "3,c,,Unknown,,,,"]
    write(folder / "items.csv.gz", ["item_id,asin,title,brand,categories,price,sales_type,sales_rank", *products])


LAYOUTS = {"2014": folder_2014, "2018": folder_2018, "2023": folder_2023, "csv": folder_csv}


def prepared(source: Path, out: Path, vectors: str = "none") -> list[dict[str, Any]]:
    AmazonCommand(source, out, LogSettings(validation_share=0.0, test_share=0.2), vectors).run()
    return read_rows(out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_say_the_same(tmp_path: Path, layout: str) -> None:
    (tmp_path / "src").mkdir()
    LAYOUTS[layout](tmp_path / "src")
    rows = prepared(tmp_path / "src", tmp_path / "out")
    positives = [row for row in rows if row["label"] == 1]
    assert [(row["user_id"], row["item_id"], row["timestamp"] // DAY) for row in positives] == [
        (1, 1, 10),
        (1, 2, 11),
        (2, 1, 12),
        (3, 3, 13),
        (2, 2, 14),
        (3, 1, 15),
    ]
    assert [row["history"] for row in positives] == [[], [1], [], [], [1], [3]]
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    assert items["content"].to_pylist() == ["It's red Opi Beauty Nails", "Soap Beauty Bath", ""]
    assert [row["cat_category"] for row in positives] == [2, 1, 2, 0, 1, 2]  # Bath 1, Nails 2, unknown 0
    assert [row["cat_brand"] for row in positives] == [1, 0, 1, 0, 0, 1]
    notes = schema.load_manifest(tmp_path / "out" / "log").protocol["items"]
    assert notes["without_text"] == 1  # type: ignore[index]
    assert notes["repeated_in_metadata"] == (layout == "2018")  # type: ignore[index]


@pytest.mark.real_data
def test_beauty(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "amazon-beauty"
    ready = source / "minilm_l6_v2_title_brand_cat_f16.npy"
    AmazonCommand(source, tmp_path / "out", LogSettings(), str(ready)).run()
    manifest = schema.load_manifest(tmp_path / "out" / "log")
    assert manifest.ids["item_id"] == 12_102
    assert manifest.protocol["events"] == 198_502
    assert manifest.protocol["positive_rate"] == pytest.approx(0.5, abs=1e-3)
    novelty = manifest.protocol["novelty"]
    assert novelty["never_shown"]["positive_rate"] == pytest.approx(0.5, abs=0.05)  # type: ignore[index]
    assert novelty["taken_before_but_not_lately"]["positive_rate"] == pytest.approx(0.5, abs=0.05)  # type: ignore[index]
    items = pq.read_table(tmp_path / "out" / "items.parquet", columns=["source_id", "text"])
    assert items["source_id"].to_pylist() == [str(item) for item in range(1, 12_102)]  # so row = item_id - 1
    vector = np.load(ready, mmap_mode="r")[6_000].astype(np.float32)
    assert items["text"][6_000].as_py() == vector.tolist()
