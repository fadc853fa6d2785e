"""Id maps: which source id (text of the raw log) has which dense id, and whether two data folders number alike.

A data folder that data_prep wrote holds `ids/COLUMN.parquet` for every id column: one text column, `source_id`, whose
row k is dense id k + 1. Id 0 means "unknown" and has no row. The manifest keeps the number of ids and the digest of
each map.

A later preparation with --ids appends to the maps of an earlier one, so the earlier ids are the first ids of the later
maps. `check_grown` tests this by digests of the first ids alone.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sidrec.errors import ContractError
from sidrec.io.files import column_type, readable, replaced_file
from sidrec.io.local_cache import local_file
from sidrec.io.places import Place
from sidrec.schema import IDS, LOG, MANIFEST, SOURCE_ID, MapDigest, load_manifest, map_digests
from sidrec.text import short_repr

ROW_GROUP = 1 << 20
SHORT = 12  # characters of a fingerprint in messages


@dataclass(frozen=True)
class IdMaps:
    """Counts and digests of the maps of a data folder. False if there are none.

    columns: id column (user_id, item_id, cat_*) -> its map.
    """

    columns: Mapping[str, MapDigest] = field(default_factory=dict)

    @classmethod
    def of(cls, data: Place) -> "IdMaps":
        """The maps of a data folder, as its manifest states them. Raises ContractError as `load_manifest`."""
        return cls(load_manifest(data / LOG).id_maps)

    @classmethod
    def from_json(cls, value: object, where: object) -> "IdMaps":
        """Reads what `to_json` returned. Raises ContractError."""
        return cls(map_digests(value, str(where)))

    def to_json(self) -> dict[str, dict[str, object]]:
        return {column: asdict(found) for column, found in self.columns.items()}

    @property
    def fingerprint(self) -> str:
        """Short hexadecimal digest over all maps; equal for equal ids in all columns."""
        found = sha256()
        for column in sorted(self.columns):
            found.update(f"{column}\n{self.columns[column].ids}\n{self.columns[column].digest}\n".encode())
        return found.hexdigest()[:SHORT]

    def __bool__(self) -> bool:
        return bool(self.columns)


def check_grown(
    earlier: IdMaps,
    where: object,
    data: Place,
    earlier_data: Place | None = None,
    columns: Collection[str] | None = None,
) -> str:
    """Checks that the data folder `data` keeps every id of `earlier`, in each column that both have.

    where: what has the earlier maps, for messages. earlier_data: its data folder if it is known, to name the first id
    that differs. columns: those that are checked; None: all. A map file is read only where the numbers of ids differ.
    Returns a warning if one of the two lacks maps, so that they could not be checked, else "". Raises ContractError
    naming column, fingerprints and what to do.
    """
    found = IdMaps.of(data)
    if not earlier or not found:
        without = data if not found else where
        return f"{without} has no id maps: whether the ids of {data} are those of {where} is not checked"
    known_by_column = {name: known for name, known in earlier.columns.items() if columns is None or name in columns}
    for column, known in known_by_column.items():
        now = found.columns.get(column)
        if now is None or now == known:
            continue
        if now.ids <= known.ids or digest(source_ids(data, column), known.ids) != known.digest:
            expected = f"the {known.ids:,} ids of {where} (fingerprint {earlier.fingerprint}), or these and more"
            got = f"{now.ids:,} ids that are others (fingerprint {found.fingerprint})"
            example = _first_difference(column, data, earlier, earlier_data)
            remedy = f"prepare {data} with --ids and the data folder of {where}"
            raise ContractError(f"{data}, ids of {column}", expected, f"{got}{example}; {remedy}")
    lacking = ", ".join(column for column in known_by_column if column not in found.columns)
    return f"{data} has no id map of {lacking}: whether its ids are those of {where} is not checked" if lacking else ""


def _first_difference(column: str, data: Place, earlier: IdMaps, earlier_data: Place | None) -> str:
    """ ": id 7 is 'a', there 'b'", or "" if the earlier map is not at hand any more."""
    if earlier_data is None:
        return ""
    try:
        before, now = source_ids(earlier_data, column), source_ids(data, column)
        if digest(before, len(before)) != earlier.columns[column].digest:
            return ""
    except ContractError:
        return ""
    both = min(len(before), len(now))
    place = pc.index(pc.not_equal(before.slice(0, both), now.slice(0, both)), True).as_py()
    if place < 0:
        return f": id {both + 1:,} is missing"
    return f": id {place + 1:,} is {short_repr(now[place].as_py())}, there {short_repr(before[place].as_py())}"


# One map.


def map_name(column: str) -> str:
    """The file of a column's map in a data folder. Names of columns are any text; % and / are escaped as in a URL."""
    return f"{IDS}/{column.replace('%', '%25').replace('/', '%2F')}.parquet"


def map_path(data: Path, column: str) -> Path:
    """The file of a column's map."""
    return data / map_name(column)


def digest(source_ids: pa.ChunkedArray, ids: int) -> str:
    """SHA-256 over the first `ids` source ids: their number, the lengths of all in bytes, and the bytes of all.

    Does not depend on how the column is cut into chunks. Raises ValueError for fewer ids and for missing ones.
    """
    if len(source_ids) < ids or source_ids.slice(0, ids).null_count:
        raise ValueError(f"expected {ids} source ids, got {len(source_ids)}, {source_ids.null_count} of them missing")
    found = _Digest()
    for chunk in source_ids.slice(0, ids).chunks:
        found.add(chunk)
    return found.value()


class _Digest:
    """The digest of chunks that are added in order. ids: number of source ids so far."""

    def __init__(self) -> None:
        self.ids = 0
        self._lengths, self._texts = sha256(), sha256()

    def add(self, chunk: pa.Array) -> None:
        if not len(chunk):
            return
        offsets = np.frombuffer(chunk.buffers()[1], _offset_type(chunk))[chunk.offset : chunk.offset + len(chunk) + 1]
        self.ids += len(chunk)
        self._lengths.update(np.diff(offsets).astype("<i8").tobytes())
        if chunk.buffers()[2] is not None:
            self._texts.update(memoryview(chunk.buffers()[2])[int(offsets[0]) : int(offsets[-1])])

    def value(self) -> str:
        return sha256(f"{self.ids}\n{self._lengths.hexdigest()}\n{self._texts.hexdigest()}\n".encode()).hexdigest()


def _offset_type(chunk: pa.Array) -> type[np.signedinteger]:
    return np.int64 if pa.types.is_large_string(chunk.type) else np.int32


def save_source_ids(data: Path, column: str, source_ids: pa.ChunkedArray | Iterable[pa.Array]) -> MapDigest:
    """Writes a map in one step. source_ids: a column of text, or its chunks in order. Raises OSError."""
    path, found = map_path(data, column), _Digest()
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow = pa.schema([(SOURCE_ID, pa.string())])
    with (
        replaced_file(path, one_writer=True) as partial,
        pq.ParquetWriter(partial, arrow, compression="zstd") as writer,
    ):
        for chunk in source_ids.chunks if isinstance(source_ids, pa.ChunkedArray) else source_ids:
            found.add(chunk)
            writer.write_table(pa.table([chunk], schema=arrow), row_group_size=ROW_GROUP)
    return MapDigest(found.ids, found.value())


def source_ids(data: Place, column: str) -> pa.ChunkedArray:
    """The source ids of a column, text; row k has dense id k + 1.

    Raises ContractError if the manifest states no map of this column, or if the file is not that map.
    """
    manifest = data / LOG / MANIFEST
    stated = load_manifest(data / LOG).id_maps
    if column not in stated:
        raise ContractError(f"{manifest}, id_maps", f"a map of {column}", f"maps of {sorted(stated)}")
    path, wanted = data / map_name(column), stated[column]
    with readable(path, "the id map that its manifest states"):
        file = pq.ParquetFile(local_file(path))
        kind = column_type(file.schema_arrow, SOURCE_ID, path)
        if kind not in (pa.string(), pa.large_string()):
            raise ContractError(f"{path}, column {SOURCE_ID}", "text", kind)
        found = file.read([SOURCE_ID])[SOURCE_ID]
    if found.null_count or len(found) != wanted.ids:
        expected = f"the {wanted.ids:,} source ids that {manifest} states"
        raise ContractError(path, expected, f"{len(found):,} rows, {found.null_count:,} of them missing")
    if digest(found, len(found)) != wanted.digest:
        raise ContractError(path, f"the source ids that {manifest} states", "others (another digest)")
    return found
