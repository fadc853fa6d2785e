"""Amazon reviews: `python -m data_prep.amazon SRC OUT`.

SRC holds one review file and one meta_* file as published, with one record a line:
2014: reviews_X_5.json.gz and meta_X.json.gz, metadata as Python literals (He & McAuley 2016);
2018: X_5.json.gz and meta_X.json.gz (Ni et al. 2019);
2023: X.jsonl.gz and meta_X.jsonl.gz (Hou et al. 2024).
Or it holds interactions.csv.gz (user_id, item_id, timestamp) and items.csv.gz (item_id, title, brand, categories).
Every review is a positive.
"""

import ast
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from sidrec.command_line import metavar
from sidrec.errors import ContractError

from .build import LogSettings, prepare
from .command import run
from .events import (
    CATALOG_TEXT,
    CATALOG_TITLE,
    ITEM,
    LABEL,
    TIMESTAMP,
    USER,
    EventColumns,
    IdMap,
    Items,
    Source,
    check_events,
)
from .source_columns import Lines, seconds, texts
from .source_files import blocks, readable, whole

INTERACTIONS, PRODUCTS = "interactions.csv.gz", "items.csv.gz"
LABELS = "1 for every review (a purchase); rows with 0 are sampled"
NO_BRAND = "Unknown"
LINES = 100_000
OLD_KEYS = ("reviewerID", "asin", "unixReviewTime")
NEW_KEYS = ("user_id", "parent_asin", "timestamp")


@dataclass(frozen=True)
class AmazonCommand:
    """Writes log/ and items.parquet from Amazon reviews (2014, 2018, 2023 or CSV), with sampled negatives."""

    src: tyro.conf.Positional[Annotated[Path, metavar("SRC")]]
    """Folder with a review file and its metadata."""
    out: tyro.conf.Positional[Annotated[Path, metavar("OUT")]]
    """Data folder to write."""
    log: Annotated[LogSettings, tyro.conf.arg(name="")] = field(default_factory=LogSettings)
    vectors: Annotated[str, metavar("SOURCE")] = "wordllama"
    """Item vectors from wordllama, sentence-transformers, none, or FILE.npy (row = item_id - 1)."""

    def run(self) -> None:
        source = amazon_source(self.src)
        prepare(source, self.out, self.log, implicit=True, vectors=self.vectors, inputs=(self.src,))


def amazon_source(folder: Path) -> Source:
    """The source for the layout of the folder's files. Raises ContractError unless one layout's files are there."""
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
class AmazonCsv:
    """interactions.csv.gz (user_id, item_id, timestamp) and items.csv.gz (item_id, title, brand, categories)."""

    folder: Path
    event_columns: EventColumns = field(default=EventColumns(), init=False)
    labels: str = field(default=LABELS, init=False)

    @property
    def name(self) -> str:
        return f"amazon {Path(os.path.realpath(self.folder)).name}"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.folder / INTERACTIONS, self.folder / PRODUCTS)

    @cached_property
    def _products(self) -> pa.Table:
        prose = ("title", "brand", "categories")
        return whole(blocks(self.files[1], ("item_id", *prose), free_text=prose), self.files[1], "item_id")

    def catalog(self) -> list[str]:
        return list(self._products["item_id"].to_pylist())

    def events(self) -> Iterator[pa.Table]:
        path = self.files[0]
        for lines, table in blocks(path, ("user_id", "item_id", "timestamp")):
            events = pa.table(
                {
                    USER: texts(table["user_id"]),
                    ITEM: texts(table["item_id"]),
                    TIMESTAMP: seconds(table["timestamp"], 1, "timestamp", lines),
                    LABEL: pa.array([1.0] * table.num_rows, pa.float32()),
                }
            )
            yield check_events(events, lines)

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
    event_columns: EventColumns = field(default=EventColumns(), init=False)
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
    listed_I = np.zeros(len(ids), dtype=bool)
    listed_I[np.asarray(list(known), dtype=np.int64) - 1] = True
    return Items(table, categories, {}, notes, listed=listed_I)


# Files with one record a line.


def review_events(path: Path) -> Iterator[pa.Table]:
    """Every review as a positive event. Times are milliseconds in 2023's files, seconds in older ones."""
    for first_line, records in _blocks(path):
        keys = NEW_KEYS if NEW_KEYS[1] in records[0] else OLD_KEYS
        per_second = 1000 if keys is NEW_KEYS else 1
        users, items, times = [], [], []
        for line, record in enumerate(records, first_line):
            where = f"{path}, line {line}"
            users.append(_text(record, keys[0], where))
            items.append(_text(record, keys[1], where))
            time = record.get(keys[2])
            if not isinstance(time, int):
                raise ContractError(f"{where}, key {keys[2]}", "a whole number", repr(time))
            times.append(time // per_second)
        events = pa.table({USER: users, ITEM: items, TIMESTAMP: pa.array(times, pa.int64())})
        events = events.append_column(LABEL, pa.array([1.0] * len(times), pa.float32()))
        yield check_events(events, Lines(path, first_line))


def product_records(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Source id and metadata record of every product of a metadata file, in the file's order."""
    for first_line, records in _blocks(path):
        for line, record in enumerate(records, first_line):
            key = NEW_KEYS[1] if NEW_KEYS[1] in record else OLD_KEYS[1]
            yield _text(record, key, f"{path}, line {line}"), record


def product_text(record: Mapping[str, object]) -> tuple[str, str, list[str]]:
    """Title, brand and category path of a metadata record; missing ones are empty."""
    title, brand = record.get("title"), record.get("brand") or record.get("store")
    path = record.get("categories") or record.get("category") or []
    if isinstance(path, list) and path and isinstance(path[0], list):
        path = path[0]
    names = [str(name) for name in path] if isinstance(path, list) else []
    return str(title or "").strip(), str(brand or "").strip(), names


def _blocks(path: Path) -> Iterator[tuple[int, list[dict[str, object]]]]:
    block: list[dict[str, object]] = []
    line = 0
    with readable(path) as file:
        for line, text in enumerate(file, 1):
            block.append(_record(text, f"{path}, line {line}"))
            if len(block) == LINES:
                yield line - LINES + 1, block
                block = []
    if block:
        yield line - len(block) + 1, block


def _record(text: bytes, where: str) -> dict[str, object]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        try:
            record = ast.literal_eval(text.decode())
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise ContractError(where, "a JSON object (or Python literal)", repr(text[:60])) from None
    if not isinstance(record, dict):
        raise ContractError(where, "a JSON object", repr(text[:60]))
    return record


def _text(record: Mapping[str, object], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise ContractError(f"{where}, key {key}", "an id", repr(value))
    return value


if __name__ == "__main__":
    run(AmazonCommand, "data_prep.amazon", "raw/beauty data/beauty", "raw/beauty data/beauty --negatives 4")
