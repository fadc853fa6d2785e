"""Amazon review and metadata files with one record a line: 2014 (metadata as Python literals), 2018 and 2023 (JSON).

Hou et al. 2024 (2023), Ni et al. 2019 (2018), He & McAuley 2016 (2014).
"""

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from data_prep.events import ITEM, LABEL, TIMESTAMP, USER, check_events
from data_prep.text_tables import readable
from sidrec.schema import ContractError

LINES = 100_000
OLD_KEYS = ("reviewerID", "asin", "unixReviewTime")
NEW_KEYS = ("user_id", "parent_asin", "timestamp")


def review_events(path: Path) -> Iterator[pa.Table]:
    """Every review as a positive event. 2023's times are milliseconds, the older ones' seconds."""
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
        yield check_events(events, path, first_line)


def product_records(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Source id and metadata record of every product of a metadata file, in the file's order."""
    for first_line, records in _blocks(path):
        for line, record in enumerate(records, first_line):
            key = NEW_KEYS[1] if NEW_KEYS[1] in record else OLD_KEYS[1]
            yield _text(record, key, f"{path}, line {line}"), record


def product_text(record: Mapping[str, object]) -> tuple[str, str, list[str]]:
    """Title, brand and category path of a metadata record; what is missing is empty."""
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
