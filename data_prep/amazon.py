"""Amazon reviews: `python -m data_prep.amazon SRC OUT`, for the 2014, 2018 and 2023 layouts and the CSV form.

SRC is a folder with either interactions.csv.gz and items.csv.gz, or one review file and one meta_* file as published
(2014: reviews_X_5.json.gz, meta_X.json.gz; 2018: X_5.json.gz, meta_X.json.gz; 2023: X.jsonl.gz, meta_X.jsonl.gz).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import tyro

from data_prep import text_tables
from data_prep.amazon_records import product_records, product_text, review_events
from data_prep.command import run
from data_prep.events import (
    CATALOG_TEXT,
    CATALOG_TITLE,
    ITEM,
    LABEL,
    TIMESTAMP,
    USER,
    Items,
    Source,
    check_events,
    check_unique,
    numbers,
)
from data_prep.id_map import IdMap
from data_prep.prepare import prepare
from data_prep.settings import LogSettings
from sidrec.schema import ContractError

INTERACTIONS, PRODUCTS = "interactions.csv.gz", "items.csv.gz"
LABELS = "1 for every review (a purchase); rows with 0 are sampled"
NO_BRAND = "Unknown"


@dataclass(frozen=True)
class AmazonCsv:
    """interactions.csv.gz (user_id, item_id, timestamp) and items.csv.gz (item_id, title, brand, categories)."""

    folder: Path
    dense: tuple[str, ...] = field(default=(), init=False)
    categorical: tuple[str, ...] = field(default=(), init=False)
    extra: tuple[str, ...] = field(default=(), init=False)
    labels: str = field(default=LABELS, init=False)

    @property
    def name(self) -> str:
        return f"amazon {self.folder.resolve().name}"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.folder / INTERACTIONS, self.folder / PRODUCTS)

    @cached_property
    def _products(self) -> pa.Table:
        products = text_tables.whole(self.files[1], ("item_id", "title", "brand", "categories"))
        check_unique(products["item_id"], f"{self.files[1]}, column item_id", 2)
        return products

    def catalog(self) -> list[str]:
        return list(self._products["item_id"].to_pylist())

    def events(self) -> Iterator[pa.Table]:
        path = self.files[0]
        for line, table in text_tables.blocks(path, ("user_id", "item_id", "timestamp")):
            events = pa.table(
                {
                    USER: table["user_id"],
                    ITEM: table["item_id"],
                    TIMESTAMP: numbers(table["timestamp"], pa.int64(), f"{path}, column timestamp", line),
                    LABEL: pa.array([1.0] * table.num_rows, pa.float32()),
                }
            )
            yield check_events(events, path, line)

    def items(self, ids: IdMap) -> Items:
        products = self._products
        columns = [pc.fill_null(products[name], "").to_pylist() for name in ("title", "brand", "categories")]
        known = {
            ids.get(source_id): (title, brand, categories.split("|") if categories else [])
            for source_id, title, brand, categories in zip(products["item_id"].to_pylist(), *columns, strict=True)
        }
        return product_items(ids, known, 0)


@dataclass(frozen=True)
class AmazonReviews:
    """A review file and a metadata file as published, one record a line."""

    reviews: Path
    metadata: Path
    dense: tuple[str, ...] = field(default=(), init=False)
    categorical: tuple[str, ...] = field(default=(), init=False)
    extra: tuple[str, ...] = field(default=(), init=False)
    labels: str = field(default=LABELS, init=False)

    @property
    def name(self) -> str:
        return f"amazon {self.reviews.name}"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.reviews, self.metadata)

    def catalog(self) -> list[str]:
        return []

    def events(self) -> Iterator[pa.Table]:
        return review_events(self.reviews)

    def items(self, ids: IdMap) -> Items:
        known: dict[int, tuple[str, str, list[str]]] = {}
        repeated = 0
        for source_id, record in product_records(self.metadata):
            item = ids.get(source_id)
            repeated += item in known
            if item and item not in known:
                known[item] = product_text(record)
        return product_items(ids, known, repeated)


def product_items(ids: IdMap, known: dict[int, tuple[str, str, list[str]]], repeated: int) -> Items:
    """known: item id -> title, brand, category path. Items without metadata get empty text."""
    rows = [known.get(item, ("", "", [])) for item in range(1, len(ids) + 1)]
    brands = ["" if brand == NO_BRAND else brand for _, brand, _ in rows]
    text = [" ".join(filter(None, (title, brand, *path))) for (title, _, path), brand in zip(rows, brands, strict=True)]
    table = pa.table(
        {
            "source_id": pa.array(ids.source_ids(), pa.string()),
            CATALOG_TITLE: pa.array([title for title, _, _ in rows], pa.string()),
            "brand": pa.array(brands, pa.string()),
            "categories": pa.array(["|".join(path) for _, _, path in rows], pa.string()),
            CATALOG_TEXT: pa.array(text, pa.string()),
        }
    )
    second_level = pa.array([path[1] if len(path) > 1 else "" for _, _, path in rows], pa.string())
    categories = {"cat_brand": pa.array(brands, pa.string()), "cat_category": second_level}
    notes = {
        "items": len(ids),
        "without_metadata": len(ids) - len(known),
        "without_text": text.count(""),
        "repeated_in_metadata": repeated,
    }
    return Items(table, categories, {}, notes)


def amazon_source(folder: Path) -> Source:
    """Recognises the layout by its files. Raises ContractError when there is not exactly one of each."""
    if not folder.is_dir():
        raise ContractError(folder, "a folder with review and metadata files", "no such folder")
    if (folder / INTERACTIONS).is_file():
        return AmazonCsv(folder)
    records = [file for file in sorted(folder.iterdir()) if file.name.endswith((".json.gz", ".jsonl.gz"))]
    metadata = [file for file in records if file.name.startswith("meta_")]
    reviews = [file for file in records if file not in metadata]
    if len(reviews) != 1 or len(metadata) != 1:
        expected = f"{INTERACTIONS} and {PRODUCTS}, or one review file and one meta_* file (.json.gz or .jsonl.gz)"
        raise ContractError(folder, expected, [file.name for file in sorted(folder.iterdir())])
    return AmazonReviews(reviews[0], metadata[0])


@dataclass(frozen=True)
class AmazonCommand:
    """Amazon reviews (2014, 2018, 2023, or the CSV form) to log/ and items.parquet, with sampled negatives."""

    src: tyro.conf.Positional[Path]
    """Folder with a review file and its metadata."""
    out: tyro.conf.Positional[Path]
    """Data folder to write."""
    log: Annotated[LogSettings, tyro.conf.arg(name="")] = field(default_factory=LogSettings)
    vectors: str = "wordllama"
    """Item vectors: wordllama, sentence-transformers, none, or FILE.npy (row = item_id - 1)."""

    def run(self) -> None:
        source = amazon_source(self.src)
        prepare(source, self.out, self.log, implicit=True, vectors=self.vectors, inputs=(self.src,))


if __name__ == "__main__":
    run(AmazonCommand, "data_prep.amazon")
