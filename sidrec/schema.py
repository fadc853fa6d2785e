"""The contracts between raw data and sidrec: column names, types and their checks.

A data folder holds::

    items.parquet            one row per item: item_id, train_impressions, vector columns, metadata
    log/manifest.json        what the log holds (Manifest)
    log/<split>/*.parquet    one row per impression, sorted by time within a split
    ids/<column>.parquet     source ids of an id column, row k has dense id k + 1 (`sidrec.id_maps`); may be absent

This file is the one place that spells these names. `data_prep` writes them, `sidrec` reads them.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa

from sidrec.errors import ContractError as ContractError
from sidrec.io.files import column_type, write_json
from sidrec.io.files import read_json as read_json
from sidrec.io.places import Place, blocks_of
from sidrec.text import short_repr

SCHEMA_VERSION = 1
LATER_KEYS = ("id_maps", "labels", "lists", "transforms")  # of a manifest: left out where empty, as in older logs
INT64 = (-(1 << 63), (1 << 63) - 1)
LARGEST_TABLE = 1 << 40  # rows; more than any machine holds

LABEL = "label"  # float32, 0 or 1
TIMESTAMP = "timestamp"  # int64, seconds since 1970
USER_ID = "user_id"  # int64
ITEM_ID = "item_id"  # int64
HISTORY = "history"  # list<int64>, items that the user liked before `timestamp`, oldest first
DENSE_PREFIX = "int_"  # float32, finite, ready for a linear layer
CATEGORICAL_PREFIX = "cat_"  # int64 in [0, ids[column]); list<int64> for columns of several values
LABEL_PREFIX = "label_"  # float32, 0 or 1: further labels of the row
STAT_PREFIX = "stat_"  # float32 counts of the target item, as of `timestamp`, never later

UNKNOWN_ID = 0
"""In every id column 0 means "not known" (and padding); real ids start at 1."""

TRAIN_IMPRESSIONS = "train_impressions"  # int64, rows of the train split on this item: defines head, torso, tail, cold
BEHAVIOR = "behavior"  # vector column; all zeros for items that the train split does not know
VECTOR_COLUMNS = ("text", "visual", BEHAVIOR)  # fixed-size float32 lists; any may be absent

MANIFEST = "manifest.json"
STATED = "stated"  # kind of split in a manifest's protocol: cuts at times that the user stated
RANDOM = "random"  # kind of split in a manifest's protocol: each row drawn alone
ITEMS = "items.parquet"
PAIRS = "pairs.parquet"  # items that belong together in the train split: item_id, other_id; beside items.parquet
OTHER_ID = "other_id"  # int64, the partner's item id
LOG = "log"
IDS = "ids"
SOURCE_ID = "source_id"  # string, the raw log's own id: the column of a map, and a column of items.parquet


@dataclass(frozen=True)
class LogFile:
    """One parquet file of a split.

    path: relative to the log folder. crc32: `crc32_of` the file; None in a manifest without checksums.
    """

    path: str
    rows: int
    first_timestamp: int
    last_timestamp: int
    crc32: int | None = None

    @classmethod
    def of(cls, log: Path, path: Path, rows: int, first_timestamp: int, last_timestamp: int) -> "LogFile":
        """The entry of a file that is written. Raises OSError."""
        return cls(str(path), rows, first_timestamp, last_timestamp, crc32_of(log / path))


@dataclass(frozen=True)
class MapDigest:
    """Number of source ids in a map, and their digest (`sidrec.id_maps.digest`)."""

    ids: int
    digest: str


@dataclass(frozen=True)
class ListColumn:
    """A cat_* column of lists. longest: most ids in a row. mean: mean ids in a row."""

    longest: int
    mean: float


@dataclass(frozen=True)
class Transform:
    """How numbers x of a source's column became a dense column: (log(1 + max(x, 0)) - mean) / deviation.

    A missing number becomes 0, and 1 in the column COLUMN_missing, if the log has it. mean, deviation: of
    log(1 + max(x, 0)) over the events of the train split that have a number. missing, negative: values of the source.
    """

    source: str
    mean: float
    deviation: float
    missing: int
    negative: int


@dataclass(frozen=True)
class Manifest:
    """The contents of `log/manifest.json`.

    ids: id column (user_id, item_id, cat_*) -> number of table rows needed, that is largest id + 1.
    dense, stats: the int_* and stat_* columns, in order.
    history_length: the longest history stored.
    splits: split name -> its files, in time order.
    protocol: how rows and labels were made (negatives, windows, thresholds), for readers.
    id_maps: id column -> its map; empty where the folder holds no maps.
    labels: the label_* columns. lists: the cat_* columns of lists. transforms: dense column -> how it was made.
    """

    source: str
    seed: int
    ids: Mapping[str, int]
    dense: tuple[str, ...]
    stats: tuple[str, ...]
    history_length: int
    splits: Mapping[str, tuple[LogFile, ...]]
    protocol: Mapping[str, object] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    id_maps: Mapping[str, MapDigest] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    lists: Mapping[str, ListColumn] = field(default_factory=dict)
    transforms: Mapping[str, Transform] = field(default_factory=dict)

    def rows(self, split: str) -> int:
        return sum(file.rows for file in self.files(split))

    def files(self, split: str) -> tuple[LogFile, ...]:
        """Raises ContractError when the log has no such split."""
        if split not in self.splits:
            cuts = self.protocol.get("split")
            stated = isinstance(cuts, Mapping) and cuts.get("kind") == STATED
            why = ": the log was cut at stated times that leave it empty; use a folder that has it" if stated else ""
            raise ContractError(MANIFEST, f"one of the splits {sorted(self.splits)}", f"{split!r}{why}")
        return self.splits[split]

    @property
    def categorical(self) -> tuple[str, ...]:
        return tuple(column for column in self.ids if column.startswith(CATEGORICAL_PREFIX))


def log_schema(manifest: Manifest) -> pa.Schema:
    """The arrow schema of every file of this log."""
    columns = [(LABEL, pa.float32()), (TIMESTAMP, pa.int64()), (USER_ID, pa.int64()), (ITEM_ID, pa.int64())]
    columns += [(name, pa.float32()) for name in manifest.dense]
    kinds = {name: pa.list_(pa.int64()) if name in manifest.lists else pa.int64() for name in manifest.categorical}
    columns += list(kinds.items())
    columns += [(HISTORY, pa.list_(pa.int64()))]
    columns += [(name, pa.float32()) for name in (*manifest.stats, *manifest.labels)]
    return pa.schema(columns)


def crc32_of(path: Place) -> int:
    """CRC-32 of a file's bytes, read a block at a time. Raises OSError or StoreError."""
    found = 0
    for block in blocks_of(path):
        found = crc32(block, found)
    return found


def save_manifest(manifest: Manifest, log: Path) -> None:
    """Writes `log/manifest.json` in one step. Raises OSError; ValueError for NaN or infinity in the protocol."""
    keys = {key: value for key, value in asdict(manifest).items() if value or key not in LATER_KEYS}
    write_json(log / MANIFEST, keys, one_writer=True)


def load_manifest(log: Place) -> Manifest:
    """Reads and checks `log/manifest.json`. Raises ContractError naming the key that is wrong."""
    path = log / MANIFEST
    raw = read_json(path, "a log manifest, as data_prep writes it")
    if not isinstance(raw, dict):
        raise ContractError(path, "a JSON object", type(raw).__name__)
    return _manifest_from_json(raw, path)


def _manifest_from_json(raw: dict[str, Any], path: Place) -> Manifest:
    fields = Manifest.__dataclass_fields__
    missing = sorted(set(fields) - set(raw) - {"protocol", *LATER_KEYS})
    unknown = sorted(set(raw) - set(fields))
    if missing or unknown:
        raise ContractError(path, f"the keys {sorted(fields)}", f"missing {missing}, unknown {unknown}")
    if raw["schema_version"] != SCHEMA_VERSION:
        raise ContractError(f"{path}, schema_version", f"{SCHEMA_VERSION}", raw["schema_version"])
    try:
        splits = {
            name: tuple(_log_file(entry, f"{path}, splits.{name}", path.parent) for entry in entries)
            for name, entries in raw["splits"].items()
        }
        ids = {column: _integer(rows, f"{path}, ids.{column}", 1, LARGEST_TABLE) for column, rows in raw["ids"].items()}
        dense, stats = tuple(raw["dense"]), tuple(raw["stats"])
        protocol = dict(raw.get("protocol", {}))
        labels = tuple(raw.get("labels", ()))
        lists = {column: ListColumn(**entry) for column, entry in raw.get("lists", {}).items()}
        transforms = {column: Transform(**entry) for column, entry in raw.get("transforms", {}).items()}
    except ContractError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise ContractError(path, "the value types of the Manifest contract", error) from None
    _check_names(path, ids, dense, stats, labels)
    _check_lists(path, ids, lists)
    _check_transforms(path, dense, transforms)
    for split in splits:
        if Path(split).name != split:
            raise ContractError(f"{path}, splits", "names that are no paths", repr(split))
    length = _integer(raw["history_length"], f"{path}, history_length", 0, INT64[1])
    seed = _integer(raw["seed"], f"{path}, seed", *INT64)
    maps = map_digests(raw.get("id_maps", {}), f"{path}, id_maps")
    for column, found in maps.items():
        if column not in ids or found.ids >= ids[column]:
            expected = f"fewer ids than table rows, for a column of {sorted(ids)}"
            raise ContractError(f"{path}, id_maps.{column}", expected, f"{found.ids:,} ids")
    later: dict[str, Any] = {"id_maps": maps, "labels": labels, "lists": lists, "transforms": transforms}
    return Manifest(str(raw["source"]), seed, ids, dense, stats, length, splits, protocol, **later)


def map_digests(value: object, where: str) -> dict[str, MapDigest]:
    """Column -> map, from JSON. Raises ContractError naming the entry that is wrong."""
    if not isinstance(value, dict):
        raise ContractError(where, "an object with an entry for each id column", short_repr(value))
    found = {}
    for column, entry in value.items():
        if not isinstance(entry, dict) or set(entry) != {"ids", "digest"} or not _is_digest(entry["digest"]):
            raise ContractError(f"{where}.{column}", "the keys ids and digest (a SHA-256)", short_repr(entry))
        found[column] = MapDigest(_integer(entry["ids"], f"{where}.{column}.ids", 0, LARGEST_TABLE), entry["digest"])
    return found


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _integer(value: object, where: str, least: int, most: int) -> int:
    """The integer `value`. Raises ContractError for other types, such as 3.0, "3" and true."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ContractError(where, f"a whole number from {least} to {most}", short_repr(value))
    return value


def _log_file(entry: object, where: str, log: Place) -> LogFile:
    keys = set(LogFile.__dataclass_fields__)
    if not isinstance(entry, dict) or not keys - {"crc32"} <= set(entry) <= keys:
        raise ContractError(where, f"entries with the keys {sorted(keys)}, crc32 optional", short_repr(entry))
    path, crc = str(entry["path"]), entry.get("crc32")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ContractError(where, "file paths inside the log folder", short_repr(path))
    if isinstance(log, Path):
        _check_inside(path, where, log)
    rows = _integer(entry["rows"], f"{where}, {path}, rows", 0, INT64[1])
    first, last = (
        _integer(entry[key], f"{where}, {path}, {key}", *INT64) for key in ("first_timestamp", "last_timestamp")
    )
    return LogFile(
        path, rows, first, last, None if crc is None else _integer(crc, f"{where}, {path}, crc32", 0, INT64[1])
    )


def _check_inside(path: str, where: str, log: Path) -> None:
    """Raises ContractError for a link that leads out of the log folder."""
    try:
        target = (log / path).resolve()
        target.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, or with a zero byte
        raise ContractError(where, "file paths inside the log folder", error) from None
    if not target.is_relative_to(log.resolve()):
        raise ContractError(where, "files inside the log folder", f"{path!r}, a link to {target}")


def _check_lists(path: Place, ids: Mapping[str, int], lists: Mapping[str, ListColumn]) -> None:
    for column, entry in lists.items():
        if column not in ids or not column.startswith(CATEGORICAL_PREFIX):
            known = sorted(name for name in ids if name.startswith(CATEGORICAL_PREFIX))
            raise ContractError(f"{path}, lists", f"columns of ids, such as {known}", repr(column))
        _integer(entry.longest, f"{path}, lists.{column}.longest", 0, INT64[1])
        _number(entry.mean, f"{path}, lists.{column}.mean", 0)


def _check_transforms(path: Place, dense: tuple[str, ...], transforms: Mapping[str, Transform]) -> None:
    for column, entry in transforms.items():
        where = f"{path}, transforms.{column}"
        if column not in dense:
            raise ContractError(where, f"a dense column, one of {list(dense)}", repr(column))
        _number(entry.mean, f"{where}.mean", 0)
        _number(entry.deviation, f"{where}.deviation", 0)


def _number(value: object, where: str, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise ContractError(where, f"a finite number of at least {least:g}", short_repr(value))


def _check_names(
    path: Place, ids: Mapping[str, int], dense: tuple[str, ...], stats: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    for column in (USER_ID, ITEM_ID):
        if column not in ids:
            raise ContractError(f"{path}, ids", f"the column {column}", sorted(ids))
    for column in ids:
        if column not in (USER_ID, ITEM_ID) and not column.startswith(CATEGORICAL_PREFIX):
            raise ContractError(f"{path}, ids", f"{USER_ID}, {ITEM_ID} or {CATEGORICAL_PREFIX}*", repr(column))
    named = {"dense": (dense, DENSE_PREFIX), "stats": (stats, STAT_PREFIX), "labels": (labels, LABEL_PREFIX)}
    for name, (columns, prefix) in named.items():
        for place, column in enumerate(columns):
            if not isinstance(column, str) or not column.startswith(prefix) or column in columns[:place]:
                expected = f"different names that start with {prefix}"
                raise ContractError(f"{path}, {name}", expected, short_repr(column))


def check_columns(found: pa.Schema, manifest: Manifest, where: object) -> None:
    """Raises ContractError if a column of the contract is missing or has another type. Further columns are allowed."""
    for expected in log_schema(manifest):
        kind = column_type(found, expected.name, where)
        if not same_type(kind, expected.type):
            raise ContractError(f"{where}, column {expected.name}", str(expected.type), kind)


def same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a file's type is that of the contract. Lists may be large, and their entries declared "not null".

    Polars and Spark write such lists; the bytes in a Parquet file are the same.
    """
    if pa.types.is_list(wanted) and (pa.types.is_list(found) or pa.types.is_large_list(found)):
        return bool(found.value_type == wanted.value_type)
    return bool(found == wanted)
