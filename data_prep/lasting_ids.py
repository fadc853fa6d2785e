"""Ids that last: a preparation starts from the id maps of an earlier data folder (`--ids FOLDER`).

Ids of the earlier folder stay, and new values follow, so that the earlier folder's runs and catalogs can be used with
the new one. What the earlier folder knows of items that today's files do not list is carried over: text, categories,
numbers and vectors. The constants of dense columns are kept too.

Shapes: I items of the new folder; the earlier folder has the first of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sidrec import schema
from sidrec.errors import ContractError, print_warning
from sidrec.id_maps import IdMaps, map_path, source_ids
from sidrec.io.files import column_type, readable, replaced_file
from sidrec.schema import ITEM_ID, SOURCE_ID, USER_ID, Manifest
from sidrec.text import near_folder

from .dense_numbers import MISSING, DenseNumbers
from .events import CATALOG_TEXT, IdMap, Items

ROWS = 16_384  # of items.parquet, at a time
APART = (
    "histories and statistics begin with this log: with the earlier log in LOG too, or with --after, they would go on"
)
WITHOUT_TEXT = "without_text"  # in the notes of a source


@dataclass(frozen=True)
class EarlierIds:
    """The maps of an earlier data folder. Without a folder there are none, and every method does nothing.

    maps: id column -> source ids. id_maps: their counts and digests. last_timestamp: of the latest row.
    """

    folder: Path | None = None
    maps: Mapping[str, IdMap] = field(default_factory=dict)
    id_maps: IdMaps = IdMaps()
    dense_numbers: DenseNumbers | None = None
    last_timestamp: int = 0

    @classmethod
    def read(cls, folder: Path | None) -> "EarlierIds":
        """Raises ContractError for a folder without maps, for damaged maps, and for items in another order."""
        if folder is None:
            return cls()
        where = f"--ids {folder}"
        if not (folder / schema.LOG / schema.MANIFEST).is_file():
            near = near_folder(folder, schema.ITEMS)
            raise ContractError(where, "a data folder that data_prep wrote", f"no {schema.LOG}/{schema.MANIFEST}{near}")
        manifest = schema.load_manifest(folder / schema.LOG)
        missing = [column for column in (USER_ID, ITEM_ID) if column not in manifest.id_maps]
        if missing:
            expected = (
                f"a data folder with id maps of {USER_ID} and {ITEM_ID}, as this version of data_prep writes them"
            )
            raise ContractError(where, expected, f"no map of {' and '.join(missing)}; prepare it again")
        maps = {column: _id_map(folder, column) for column in manifest.id_maps}
        _check_items(folder / schema.ITEMS, maps[ITEM_ID])
        flagged = (name for name in manifest.transforms if name + MISSING in manifest.dense)
        latest = max((file.last_timestamp for files in manifest.splits.values() for file in files), default=0)
        dense_numbers = DenseNumbers(manifest.transforms, frozenset(flagged))
        return cls(folder, maps, IdMaps(manifest.id_maps), dense_numbers, latest)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read. If one changes, an unfinished preparation starts again."""
        if self.folder is None:
            return ()
        maps = (map_path(self.folder, column) for column in self.maps)
        return (self.folder / schema.LOG / schema.MANIFEST, self.folder / schema.ITEMS, *maps)

    def grown(self, column: str, new: Iterable[str] = ()) -> IdMap:
        """A map with the earlier ids of the column, then those of `new` that it lacks."""
        earlier = self.maps[column].source_ids() if column in self.maps else []
        return IdMap((*earlier, *new))

    def check_shared(self, lowest_id: Callable[[str], int]) -> None:
        """Checks that the log has users and items of the earlier folder, whose ids are the lowest.

        lowest_id: of the log's events, by column.

        Warns if it has no earlier user or no earlier item. Raises ContractError if it has neither.
        """
        if self.folder is None:
            return
        missing = []
        for column, noun in ((USER_ID, "users"), (ITEM_ID, "items")):
            ids = self.maps[column]
            if lowest_id(column) > len(ids):
                missing.append(
                    f"none of its {len(ids):,} {noun} (such as {', '.join(map(repr, ids.source_ids()[:2]))})"
                )
        where, found = f"--ids {self.folder}", f"{' and '.join(missing)} in the log"
        if len(missing) == 2:
            raise ContractError(where, "the folder of an earlier log with the same users or items", found)
        if missing:
            print_warning(f"{where}: {found}; are they written in the same way?")

    def warn_of_dropped(self, manifest: Manifest) -> None:
        """Warns of the earlier folder's columns that the new one lacks: probably forgotten flags."""
        constants = () if self.dense_numbers is None else self.dense_numbers.transforms
        dropped = [name for name in (*self.maps, *constants) if name not in {*manifest.ids, *manifest.dense}]
        if dropped:
            found = f"its columns {', '.join(dropped)} are not in this preparation (forgotten flags?)"
            print_warning(f"--ids {self.folder}: {found}: runs that use them cannot read OUT, and their ids end here")

    def protocol(self, first: int, *, goes_on: bool) -> dict[str, object]:
        """What the new manifest says of the earlier folder.

        first: time of the log's first event. goes_on: histories go on from the folder's state.
        """
        if self.folder is None:
            return {}
        found: dict[str, object] = {"folder": str(self.folder), "fingerprint": self.id_maps.fingerprint}
        found["ids"] = {column: len(ids) for column, ids in self.maps.items()}
        if first > self.last_timestamp and not goes_on:
            found["histories"] = APART
        return {"ids_from": found}

    # Items.

    def train_impressions(self, items: int) -> np.ndarray:
        """The earlier folder's train_impressions by item id, 0 included; 0 for new items. items: number of ids + 1."""
        known = self._known([schema.TRAIN_IMPRESSIONS])[schema.TRAIN_IMPRESSIONS].to_numpy()
        return np.concatenate([[0], known, np.zeros(items - 1 - len(known), dtype=np.int64)])

    def with_earlier_items(self, items: Items) -> Items:
        """Fills in text, categories and numbers of earlier items that today's files do not list."""
        if self.folder is None:
            return items
        rows, earlier = items.table.num_rows, len(self.maps[ITEM_ID])
        listed_I = np.zeros(rows, dtype=bool) if items.listed is None else items.listed
        carried_I = ~listed_I & (np.arange(rows) < earlier)
        columns = {name: items.table[name] for name in items.table.column_names if name != SOURCE_ID}
        known = self._known([*columns, *items.categories, *items.lists, *items.numbers])
        texts = {name: self._category_text(name, known[name]) for name in items.categories if name in known}
        lists = {name: self._category_lists(name, known[name]) for name in items.lists if name in known}
        columns = {name: _filled(today, known.get(name), carried_I) for name, today in columns.items()}
        table = pa.table({SOURCE_ID: items.table[SOURCE_ID], **columns}).select(items.table.column_names)
        notes = dict(items.notes) | {"carried_over": int(carried_I.sum())}
        if WITHOUT_TEXT in notes:
            notes[WITHOUT_TEXT] = pc.sum(pc.equal(table[CATALOG_TEXT], "")).as_py()
        return replace(
            items,
            table=table,
            categories={name: _filled(today, texts.get(name), carried_I) for name, today in items.categories.items()},
            lists={name: _filled(today, lists.get(name), carried_I) for name, today in items.lists.items()},
            numbers={
                name: (_filled_numbers(today, carried_I, known.get(name)), column)
                for name, (today, column) in items.numbers.items()
            },
            notes=notes,
            listed=None if items.listed is None else listed_I | carried_I,
        )

    def _known(self, names: list[str]) -> dict[str, pa.ChunkedArray]:
        path = self.folder_or_fail / schema.ITEMS
        with readable(path, f"the items of --ids {self.folder}"):
            present = pq.read_schema(path).names
            table = pq.read_table(path, columns=[name for name in names if name in present])
        return {name: table[name] for name in table.column_names}

    @property
    def folder_or_fail(self) -> Path:
        assert self.folder is not None, "there is no earlier folder"
        return self.folder

    def _category_text(self, column: str, ids: pa.ChunkedArray) -> pa.Array | None:
        """Text of the earlier folder's category ids, empty for id 0. None if they were lists there."""
        if column not in self.maps or not pa.types.is_integer(ids.type):
            return None
        with readable(self.folder_or_fail / schema.ITEMS, f"ids of {map_path(self.folder_or_fail, column)}"):
            return pa.array(["", *self.maps[column].source_ids()], pa.string()).take(ids.combine_chunks().fill_null(0))

    def _category_lists(self, column: str, ids: pa.ChunkedArray) -> pa.Array | None:
        """As `_category_text`, of lists of ids. None if they were single ids there."""
        if not pa.types.is_list(ids.type):
            return None
        lists = pa.concat_arrays(ids.chunks).fill_null([])
        texts = self._category_text(column, pa.chunked_array([lists.flatten()]))
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())]).astype(np.int32)
        return None if texts is None else pa.ListArray.from_arrays(offsets, texts)

    def carry_vectors(self, items: Path) -> None:
        """Adds the earlier folder's vector columns that `items` lacks: new items get zeros."""
        if self.folder is None:
            return
        source = self.folder / schema.ITEMS
        with readable(source, f"the items of --ids {self.folder}"), pq.ParquetFile(source) as earlier:
            present = pq.read_schema(items).names
            added = [
                column
                for column in earlier.schema_arrow
                if pa.types.is_fixed_size_list(column.type) and column.name not in present
            ]
            if added:
                _append(items, earlier, added)


NO_EARLIER = EarlierIds()


def _id_map(folder: Path, column: str) -> IdMap:
    """A map of the earlier folder. Raises ContractError for a map with an empty or repeated source id."""
    texts = source_ids(folder, column).to_pylist()
    found = IdMap(texts)
    if len(found) < len(texts) or found.get(""):
        wrong = next(text for row, text in enumerate(texts, 1) if not text or found.get(text) != row)
        raise ContractError(map_path(folder, column), "every source id once, and none empty", repr(wrong))
    return found


def _check_items(path: Path, items: IdMap) -> None:
    """Raises ContractError unless row k of items.parquet has the id k + 1 and its source id."""
    with readable(path, "the items of the folder that --ids names"):
        arrow = pq.read_schema(path)
        for column in (ITEM_ID, SOURCE_ID, schema.TRAIN_IMPRESSIONS, *arrow.names):
            column_type(arrow, column, path)
        table = pq.read_table(path, columns=[ITEM_ID, SOURCE_ID])
    in_order = table[ITEM_ID].to_pylist() == list(range(1, len(items) + 1))
    if not in_order or table[SOURCE_ID].to_pylist() != items.source_ids():
        expected = f"the {len(items):,} items of {schema.IDS}/{ITEM_ID}.parquet in their order"
        raise ContractError(path, expected, f"{table.num_rows:,} others, or in another order")


def _filled_lists(today: pa.ListArray, carried_I: np.ndarray, before: pa.ListArray) -> pa.ListArray:
    row_I = np.arange(len(today))
    return pa.concat_arrays([today, before]).take(np.where(carried_I, row_I + len(today), row_I))


def _filled(
    today: pa.ChunkedArray | pa.Array, before: pa.ChunkedArray | pa.Array | None, carried_I: np.ndarray
) -> pa.Array:
    """Rows of `before` where `carried`, else those of `today`; all of today's if `before` is of another kind."""
    whole = [*today.chunks] if isinstance(today, pa.ChunkedArray) else [today]
    if before is None or before.type != today.type:
        return pa.concat_arrays(whole)
    whole += [*before.chunks] if isinstance(before, pa.ChunkedArray) else [before]
    place_I = np.arange(len(carried_I))
    return pa.concat_arrays(whole).take(pa.array(np.where(carried_I, place_I + len(carried_I), place_I)))


def _filled_numbers(today_I: np.ndarray, carried_I: np.ndarray, before: pa.ChunkedArray | None) -> np.ndarray:
    if before is None or not (pa.types.is_floating(before.type) or pa.types.is_integer(before.type)):
        return today_I
    earlier_I = np.full(len(today_I), np.nan)
    earlier_I[: len(before)] = before.cast(pa.float64()).to_numpy()
    return np.where(carried_I, earlier_I, today_I)


def _append(items: Path, earlier: pq.ParquetFile, added: list[pa.Field]) -> None:
    """Rewrites `items` with further vector columns, some rows at a time."""
    with replaced_file(items, one_writer=True) as partial, pq.ParquetFile(items) as file:
        arrow = file.schema_arrow
        for column in added:
            arrow = arrow.append(column)
        before = _Rows(earlier.iter_batches(ROWS, columns=[column.name for column in added]))
        with pq.ParquetWriter(partial, arrow) as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                known = before.take(table.num_rows)
                for column in added:
                    zeros = pa.FixedSizeListArray.from_arrays(
                        pa.array(np.zeros((table.num_rows - known.num_rows) * column.type.list_size, np.float32)),
                        type=column.type,
                    )
                    chunks = known[column.name].chunks if known.num_rows else []
                    table = table.append_column(column, pa.chunked_array([*chunks, zeros], column.type))
                writer.write_table(table)


class _Rows:
    """Batches as a queue of rows."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._left: list[pa.RecordBatch] = []

    def take(self, rows: int) -> pa.Table:
        """The next `rows` rows, or all that are left."""
        while sum(batch.num_rows for batch in self._left) < rows and (batch := next(self._batches, None)) is not None:
            self._left.append(batch)
        if not self._left:
            return pa.table({})
        table = pa.Table.from_batches(self._left)
        self._left = table.slice(rows).to_batches()
        return table.slice(0, rows)
