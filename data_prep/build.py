"""From a raw log to a data folder: relations on an engine, then rows and items, then publish.

`prepare` is what the commands for public logs call. A raw log is a `Source` of events (`data_prep.events`). `build`
orders them in time (`data_prep.ordered_events`), derives what was known before each row (`data_prep.log_relations`),
and writes log/ and items.parquet into a work folder (`data_prep.command`), which then becomes OUT.

If it is interrupted, the same command continues after the last finished relation, or part of the log.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec import schema
from sidrec.errors import ContractError, print_warning
from sidrec.id_maps import save_source_ids
from sidrec.schema import Manifest
from sidrec.text import text_table

from .column_checks import check_item_columns
from .command import STATE, WorkFolder, file_facts, rows_bar
from .dense_numbers import fit_transforms
from .engine import DuckEngine, Engine
from .events import IdMap, Items, Source, check_matches
from .histories import ChunkHistories, Histories, HistoryFile, Lists, NoHistories
from .item_vectors import NONE, TEXT_SOURCES, add_vectors, check_vector_source
from .lasting_ids import EarlierIds
from .log_files import LogWriter, WrittenParts, write_items
from .log_relations import LogRelations
from .log_rows import ROW_DENSE, STATS, LogRows
from .log_settings import LogSettings as LogSettings
from .log_state import State, write_state
from .negatives import ATTEMPTS, Sampler
from .ordered_events import OrderedEvents, order_events
from .spark_engine import SparkEngine, spark_session
from .splits import SPLITS, make_split

LAYOUT = 4  # of the relations below a work folder: unfinished work of another version starts again


def prepare(
    source: Source, out: Path, settings: LogSettings, implicit: bool, vectors: str, inputs: tuple[Path, ...] = ()
) -> None:
    """Writes the data folder `out` and prints its summary. The other arguments are those of `build`.

    vectors: "none", or a source that `add_vectors` takes. Raises ContractError for bad input.
    """
    if vectors != NONE:
        check_vector_source(vectors)
    read = () if vectors == NONE or vectors in TEXT_SOURCES else (Path(vectors),)
    work = build(source, out, settings, implicit, (*inputs, *read))
    if vectors != NONE:
        print(add_vectors(work.data / schema.ITEMS, vectors))
    work.publish()
    print(summary(out))


def summary(out: Path) -> str:
    """Lines on a data folder: source, rows and rate of positives by split, share of cold rows, where to read more."""
    manifest = schema.load_manifest(out / schema.LOG)
    facts: Any = manifest.protocol
    splits = [
        (f"  {split}", f"{part['rows']:,} rows", f"{part['positive_rate']:.1%} positive")
        for split, part in facts["splits"].items()
    ]
    cold = f"  {facts['cold_share_of_test_rows']:.1%} of the test rows are on cold items, which train never shows"
    trained = "train" in facts["splits"] or facts.keys() & {"rows_before_train", "train_impressions"}
    lines = [
        f"{out}: {manifest.source}, {facts['rows']:,} rows, {manifest.ids[schema.ITEM_ID] - 1:,} items",
        text_table(splits),
        *([cold] if "test" in facts["splits"] and trained else []),
        *_days_before(manifest),
        f"  how rows, labels and splits were made: {out / schema.LOG / schema.MANIFEST}",
    ]
    return "\n".join(lines)


def _days_before(manifest: Manifest) -> list[str]:
    """Lines on rows before train, and on ids that go on from an earlier folder."""
    facts: Any = manifest.protocol
    lines = []
    if "rows_before_train" in facts:
        rows = f"{facts['rows_before_train']:,} rows before train_from"
        lines.append(f"  {rows} only feed histories, statistics and train_impressions")
    if "ids_from" in facts:
        known = facts["ids_from"]["ids"]
        new = [
            f"{column} {found.ids - known.get(column, 0):,} new of {found.ids:,}"
            for column, found in manifest.id_maps.items()
        ]
        lines.append(f"  ids go on from {facts['ids_from']['folder']}: {', '.join(new)}")
        lines += [f"  {facts['ids_from']['histories']}"] if "histories" in facts["ids_from"] else []
    if "state_from" in facts:
        lines.append(f"  histories and statistics go on after {facts['state_from']['events']:,} earlier events")
    return lines


def build(
    source: Source, out: Path, settings: LogSettings, implicit: bool, inputs: tuple[Path, ...] = ()
) -> WorkFolder:
    """Fills a work folder. The caller may add to its `data`, and then publishes it. Bad input leaves no files.

    implicit: the log holds only positives; negatives are sampled. inputs: other files and folders that the command
    reads, which must lie apart from OUT. Raises ContractError for invalid input, and for an OUT that must not be
    replaced.
    """
    settings.check()
    earlier, state = EarlierIds.read(settings.ids_folder), State.read(settings.after)
    state.check_settings(settings, sampled=implicit)
    if settings.keeps_state and not source.event_columns.timed:
        raise ContractError("--keep-state, --after", "a log with times", "one without")
    configuration = {
        "source": source.name,
        "settings": settings.of_rows(),
        "implicit": implicit,
        "files": file_facts((*source.files, *earlier.files, *state.files)),
        "schema": schema.SCHEMA_VERSION,
        "layout": LAYOUT,
        "details": repr(source),
    }
    folders = () if settings.ids_folder is None else (settings.ids_folder,)
    work = WorkFolder.open(out, configuration, settings.overwrite, (*source.files, *inputs, *folders))
    with work.discarded_on_bad_input():
        _fill(work, source, settings, implicit, earlier, state)
    return work


def _fill(
    work: WorkFolder, source: Source, settings: LogSettings, implicit: bool, earlier: EarlierIds, state: State
) -> None:
    engine = make_engine(settings, work.scratch / "relations")
    state.attach(engine)
    known = _known_ids(source, earlier)
    log = order_events(engine, source, known, settings.partition_rows, implicit=implicit, first=state.events)
    state.check_later(log.times[0], source.files[0] if source.files else source.name)
    item_ids = IdMap(text for chunk in log.ids(schema.ITEM_ID) for text in chunk.to_pylist())
    item_rows = log.events_by_item(len(item_ids))
    earlier.check_shared(log.lowest_id)
    items = source.items(item_ids)
    check_item_columns(items, ", ".join(map(str, source.files[1:2])) or source.name)
    items = earlier.with_earlier_items(items)
    check_matches(items.listed, item_rows, item_ids.source_ids(), ", ".join(map(str, source.files[:2])))
    split = settings.stated_split or make_split(
        settings.split, log, *settings.shares, settings.seed, source.event_columns.timed
    )
    relations = LogRelations(log, split, implicit, settings.history, settings.recent_days, state)
    relations.make_split()
    given_up = _draw_negatives(log, settings, source, state) if implicit else 0
    relations.make()
    _write(work, source, settings, relations, items, given_up, earlier)


def make_engine(settings: LogSettings, folder: Path) -> Engine:
    """The engine that the settings name, with its relations below `folder`."""
    if settings.engine == "spark":
        return SparkEngine(spark_session(settings.master, settings.memory_bytes), folder)
    return DuckEngine(folder, settings.memory_bytes, settings.threads_or_cores)


def _known_ids(source: Source, earlier: EarlierIds) -> dict[str, list[str]]:
    """Source ids that come first: those of the earlier folder, and of items those of the catalog after them."""
    known = {column: ids.source_ids() for column, ids in earlier.maps.items()}
    return known | {schema.ITEM_ID: earlier.grown(schema.ITEM_ID, source.catalog()).source_ids()}


def _draw_negatives(log: OrderedEvents, settings: LogSettings, source: Source, state: State) -> int:
    """Returns how many negatives found no item. Warns if most did not; raises ContractError if none did."""
    weights = (settings.floor_weight, settings.launch_draws)
    given_up = Sampler(settings.negatives, *weights, settings.window_days, settings.seed).draw(log, state)
    wanted = log.rows * settings.negatives
    found = f"{given_up:,} of {wanted:,} negatives found no item that their user had not taken"
    if given_up == wanted:
        raise ContractError(source.name, "items that users have not taken, as negatives", found)
    if given_up > wanted / 2:
        print_warning(f"{source.name}: {found}")
    return given_up


def _write(
    work: WorkFolder,
    source: Source,
    settings: LogSettings,
    relations: LogRelations,
    items: Items,
    given_up: int,
    earlier: EarlierIds,
) -> None:
    log, columns = relations.log, source.event_columns
    categories, item_maps = category_ids(items, earlier)
    item_lists, list_maps = list_ids(items, earlier)
    sources = {**columns.numbers, **{name: column for name, (_, column) in items.numbers.items()}}
    by_item = {name: np.concatenate([[np.nan], values]) for name, (values, _) in items.numbers.items()}
    numbers = fit_transforms(log, sources, by_item, earlier.dense_numbers)
    of_events = (schema.USER_ID, schema.ITEM_ID, *columns.categorical, *columns.lists)
    maps = {column: save_source_ids(work.data, column, log.ids(column)) for column in of_events}
    maps |= {
        column: save_source_ids(work.data, column, ids.column()) for column, ids in (item_maps | list_maps).items()
    }
    id_columns = (schema.USER_ID, schema.ITEM_ID, *item_maps, *list_maps, *columns.categorical, *columns.lists)
    manifest = Manifest(
        source=source.name,
        seed=settings.seed,
        ids={column: maps[column].ids + 1 for column in id_columns},
        dense=(*ROW_DENSE, *columns.dense, *numbers.columns),
        stats=STATS,
        history_length=settings.history,
        splits={},
        transforms=numbers.transforms,
        labels=columns.labels,
        id_maps={column: maps[column] for column in id_columns},
        protocol=earlier.protocol(log.times[0], goes_on=relations.earlier.known) | relations.earlier.protocol(),
        lists=dict.fromkeys((*columns.lists, *item_lists), schema.ListColumn(0, 0.0)),
    )
    earlier.warn_of_dropped(manifest)
    extra = [pa.field(name, pa.float32()) for name in columns.extra]
    arrow = pa.schema([*schema.log_schema(manifest), *extra])
    histories = _histories(relations, work.scratch / "histories", maps[schema.USER_ID].ids)
    rows = LogRows(arrow, columns, histories, numbers, categories, item_lists)
    writer = LogWriter(work.data / schema.LOG, arrow, work.scratch / "written", log.parts)
    _write_rows(relations, rows, writer)
    written = writer.written()
    settings.check_splits({split for split, files in written.files.items() if files}, *log.times)
    _finish(work, source, settings, manifest, relations, items, (categories, item_lists), written, given_up, earlier)


def _histories(relations: LogRelations, folder: Path, users: int) -> Histories:
    if not relations.has_histories:
        return NoHistories()
    engine = relations.log.engine
    if not engine.local:
        if not engine.stored("chunks"):
            engine.make("chunks", relations.chunks())
        return ChunkHistories(relations.history)
    return HistoryFile.write(engine, relations.positives(), users, folder, relations.history)


def _write_rows(relations: LogRelations, rows: LogRows, writer: LogWriter) -> None:
    first, log = writer.missing, relations.log
    if first == log.parts:
        return
    query = relations.rows(first, tuple(log.own.values()))
    with rows_bar("writing rows", relations.rows_from(first)) as bar:
        for count in log.engine.write_parts(query, relations.order, partial(_write_batches, rows, writer)):
            bar.update(count)


def _write_batches(rows: LogRows, writer: LogWriter, batches: Iterable[pa.RecordBatch]) -> Iterator[int]:
    yield from writer.write(
        (batch.column("part").to_numpy(), batch.column("split").to_numpy(), rows.table(batch)) for batch in batches
    )


def _finish(
    work: WorkFolder,
    source: Source,
    settings: LogSettings,
    manifest: Manifest,
    relations: LogRelations,
    items: Items,
    by_item: tuple[dict[str, np.ndarray], dict[str, Lists]],
    written: WrittenParts,
    given_up: int,
    earlier: EarlierIds,
) -> None:
    impressions, test = relations.impressions(manifest.ids[schema.ITEM_ID] - 1)
    taken = {}
    if settings.ids_folder is not None and not impressions.any():
        impressions = earlier.train_impressions(len(impressions))
        taken = {"train_impressions": f"those of {settings.ids_folder}: this log has no rows of train or before it"}
    splits = {split: tuple(files) for split, files in written.files.items() if files}
    cold = int(test[impressions == 0].sum())
    facts = protocol(source, settings, items, relations, written.counts, cold, given_up)
    facts |= dict(manifest.protocol) | taken
    if settings.keeps_state:
        facts[STATE] = write_state(work.data, relations, settings)
    manifest = replace(manifest, splits=splits, lists=written.list_columns(), protocol=facts)
    write_items(work.data / schema.ITEMS, items, impressions, *by_item)
    earlier.carry_vectors(work.data / schema.ITEMS)
    schema.save_manifest(manifest, work.data / schema.LOG)


def category_ids(items: Items, earlier: EarlierIds) -> tuple[dict[str, np.ndarray], dict[str, IdMap]]:
    """The items' categories as ids: column -> int64 id per item id (0: unknown item), and column -> its map.

    New values follow the earlier ones, sorted.
    """
    by_item: dict[str, np.ndarray] = {}
    maps: dict[str, IdMap] = {}
    for column, values in items.categories.items():
        maps[column] = earlier.grown(column, sorted(set(pc.unique(values).to_pylist()) - {None, ""}))
        whole = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
        by_item[column] = np.concatenate([[0], maps[column].add(whole)])
    return by_item, maps


def list_ids(items: Items, earlier: EarlierIds) -> tuple[dict[str, Lists], dict[str, IdMap]]:
    """As `category_ids`, of the items' columns of lists."""
    by_item: dict[str, Lists] = {}
    maps: dict[str, IdMap] = {}
    for column, found in items.lists.items():
        maps[column] = earlier.grown(column, sorted(pc.unique(pc.list_flatten(found)).to_pylist()))
        of_unknown = pa.array([[]], found.type)
        by_item[column] = Lists.of(maps[column].add_lists(pa.concat_arrays([of_unknown, found])))
    return by_item, maps


# manifest.protocol: how rows and labels were made, in words and numbers.

_NEGATIVES = (
    "Every positive gets per_positive rows of the same user and timestamp with label 0. An item is launched at "
    "the time of its first positive minus a seeded uniform(0, window_days) days. A negative's item is drawn "
    "either from the items launched in the last window_days, all alike and so often that each gets about "
    "launch_draws * per_positive draws in that time, or from all launched items in proportion to floor_weight "
    "plus their positives in the window_days whole UTC days before the positive's own day. Never an item that the"
    f" user took at or before that time: after {ATTEMPTS} such draws the negative is given up. Negatives count as "
    "exposures. The launch time, and nothing else, is taken from the item's own future."
)


def protocol(
    source: Source,
    settings: LogSettings,
    items: Items,
    relations: LogRelations,
    counts: Counter[str],
    cold_rows: int,
    given_up: int,
) -> dict[str, object]:
    """manifest.protocol. counts: see `WrittenParts`. cold_rows: test rows on items without a train impression."""
    rows = sum(counts[f"{split} rows"] for split in SPLITS)
    positives = sum(counts[f"{split} positives"] for split in SPLITS)
    facts: dict[str, object] = {
        "labels": source.labels,
        "events": relations.log.rows,
        "rows": rows,
        "positive_rate": rate(positives, rows),
        "splits": {
            split: {
                "rows": counts[f"{split} rows"],
                "positive_rate": rate(counts[f"{split} positives"], counts[f"{split} rows"]),
            }
            for split in SPLITS
            if counts[f"{split} rows"]
        },
        "split": relations.split.protocol(),
        "cold_share_of_test_rows": rate(cold_rows, counts["test rows"]),
        "as_of": "history and stat_* columns count rows with a strictly smaller timestamp; *_recent count the "
        f"{settings.recent_days} whole UTC days before the row's own day. Rows of every split count."
        if source.event_columns.timed
        else "the log has no times: no row has a history or counts",
        "novelty": {
            "words": "if the label could be told from what an item has not had yet, these rates would be far "
            "from the overall one",
            "never_shown": _novelty(counts, "new"),
            "taken_before_but_not_lately": _novelty(counts, "idle"),
        },
        "items": dict(items.notes),
    }
    if counts["before rows"]:
        facts["rows_before_train"] = counts["before rows"]
    if relations.sampled:
        facts["negatives"] = {
            "words": _NEGATIVES,
            "per_positive": settings.negatives,
            "window_days": settings.window_days,
            "floor_weight": settings.floor_weight,
            "launch_draws": settings.launch_draws,
            "given_up": given_up,
        }
    return facts


def _novelty(counts: Counter[str], kind: str) -> dict[str, object]:
    return {"rows": counts[f"{kind} rows"], "positive_rate": rate(counts[f"{kind} positives"], counts[f"{kind} rows"])}


def rate(part: int, whole: int) -> float:
    """A share as manifests state it: six digits, 0 of nothing."""
    return round(part / whole, 6) if whole else 0.0
