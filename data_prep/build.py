"""From a raw log to a data folder: order the events, pass over them once, write rows and items, publish.

`prepare` is what the commands for public logs call. A raw log is a `Source` of events (`data_prep.events`). `build`
sorts them by time (`data_prep.event_order`), turns them into rows that hold only what was known before each event
(`data_prep.log_pass`) and writes log/ and items.parquet into a work folder (`data_prep.command`), which then
becomes OUT.

If it is interrupted, the same command continues after the last finished partition.

Shapes: M selected rows of a partition, N rows of a batch.
"""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec import schema
from sidrec.id_maps import save_source_ids
from sidrec.schema import Manifest
from sidrec.text import text_table

from .column_checks import check_item_columns
from .command import WorkFolder, file_facts, load_snapshot, restore_snapshot, rows_bar, save_snapshot
from .dense_numbers import fit_transforms
from .event_order import NEVER, ORDER_VERSION, DayWindow, OrderedLog, order_events
from .events import IdMap, Items, Source, check_matches
from .item_vectors import NONE, TEXT_SOURCES, add_vectors, check_vector_source
from .lasting_ids import EarlierIds
from .log_files import LogWriter, rows_on_items, write_items
from .log_pass import ROW_DENSE, STATS, Lists, LogPass, PassState, train_events
from .log_settings import LogSettings as LogSettings
from .negatives import ATTEMPTS, Launches, Sampler, Taken
from .splits import SPLITS, make_split


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
    earlier = EarlierIds.read(settings.ids)
    configuration = {
        "source": source.name,
        "settings": asdict(replace(settings, overwrite=False)),
        "implicit": implicit,
        "files": file_facts((*source.files, *earlier.files)),
        "schema": schema.SCHEMA_VERSION,
        "order": ORDER_VERSION,
        "details": repr(source),
    }
    folders = () if settings.ids is None else (settings.ids,)
    work = WorkFolder.open(out, configuration, settings.overwrite, (*source.files, *inputs, *folders))
    with work.discarded_on_bad_input():
        _fill(work, source, settings, implicit, earlier)
    return work


def _fill(work: WorkFolder, source: Source, settings: LogSettings, implicit: bool, earlier: EarlierIds) -> None:
    log = order_events(source, work.scratch / "order", settings.partition_rows, earlier, implicit=implicit)
    earlier.check_shared(log.user_rows, log.item_rows)
    items = source.items(log.items)
    check_item_columns(items, ", ".join(map(str, source.files[1:2])) or source.name)
    items = earlier.with_earlier_items(items)
    check_matches(items.listed, log.item_rows, log.items.source_ids(), ", ".join(map(str, source.files[:2])))
    categories, item_maps = category_ids(items, earlier)
    item_lists, list_maps = list_ids(items, earlier)
    split = settings.stated_split or make_split(
        settings.split, log, *settings.shares, settings.seed, source.event_columns.timed
    )
    sources = {**source.event_columns.numbers, **{name: column for name, (_, column) in items.numbers.items()}}
    by_item = {name: np.concatenate([[np.nan], values]) for name, (values, _) in items.numbers.items()}
    numbers = fit_transforms(train_events(log, split), sources, by_item, earlier.dense_numbers)
    maps = {schema.USER_ID: log.users, schema.ITEM_ID: log.items, **item_maps, **list_maps, **log.maps}
    manifest = Manifest(
        source=source.name,
        seed=settings.seed,
        ids={column: len(ids) + 1 for column, ids in maps.items()},
        dense=(*ROW_DENSE, *source.event_columns.dense, *numbers.columns),
        stats=STATS,
        history_length=settings.history,
        splits={},
        transforms=numbers.transforms,
        labels=source.event_columns.labels,
        id_maps={column: save_source_ids(work.data, column, ids.column()) for column, ids in maps.items()},
        protocol=earlier.protocol(log.times()[0]),
        lists=dict.fromkeys((*source.event_columns.lists, *item_lists), schema.ListColumn(0, 0.0)),
    )
    earlier.warn_of_dropped(manifest)
    sampler = _sampler(log, settings, work.scratch) if implicit else None
    log_pass = LogPass(
        PassState.empty(len(log.users) + 1, len(log.items) + 1, settings.history, settings.recent_days),
        split,
        categories,
        numbers,
        sampler,
        source.event_columns.lists,
        item_lists,
        source.event_columns.timed,
    )
    extra = [pa.field(name, pa.float32()) for name in source.event_columns.extra]
    writer = LogWriter(work.data / schema.LOG, pa.schema([*schema.log_schema(manifest), *extra]))
    _pass_over(log, log_pass, writer, work.scratch)
    log_pass.check_negatives(source.name)
    settings.check_splits({split for split, files in writer.files.items() if files}, *log.times())
    _finish(work, source, settings, manifest, items, log_pass, writer, earlier)


def _sampler(log: OrderedLog, settings: LogSettings, scratch: Path) -> Sampler:
    folder = scratch / "taken"
    folder.mkdir(exist_ok=True)
    items = len(log.items) + 1
    launches = Launches.of(log.first_click, NEVER, settings.window_days, settings.seed)
    window = DayWindow.empty(items, settings.window_days)
    weights = (settings.floor_weight, settings.launch_draws)
    return Sampler(settings.negatives, *weights, settings.seed, window, launches, Taken(folder, items))


def _pass_over(log: OrderedLog, log_pass: LogPass, writer: LogWriter, scratch: Path) -> None:
    done = _resume(log_pass, writer, scratch)
    with rows_bar("writing rows", log.rows) as bar:
        bar.update(log_pass.events_seen)
        for partition in range(done, len(log.bucket_rows)):
            writer.write(partition, log_pass.rows_of(partition, log.bucket(partition)))
            _snapshot(partition + 1, log_pass, writer, scratch)
            bar.update(log.bucket_rows[partition])


def _snapshot(done: int, log_pass: LogPass, writer: LogWriter, scratch: Path) -> None:
    trees: dict[str, object] = {"state": log_pass.state, "facts": writer.facts()}
    trees |= {"done": done, "events_seen": log_pass.events_seen, "given_up": log_pass.given_up}
    if log_pass.sampler is not None:
        trees["window"] = log_pass.sampler.window
    save_snapshot(scratch / "snapshot.npz", **trees)


def _resume(log_pass: LogPass, writer: LogWriter, scratch: Path) -> int:
    """Restores the last snapshot, if there is one. Returns the number of finished partitions."""
    path = scratch / "snapshot.npz"
    if not path.exists():
        return 0
    arrays = load_snapshot(path)
    done = int(arrays["done"])
    log_pass.state = restore_snapshot(log_pass.state, "state", arrays)
    log_pass.events_seen, log_pass.given_up = int(arrays["events_seen"]), int(arrays["given_up"])
    writer.resume(str(arrays["facts"]))
    if log_pass.sampler is not None:
        log_pass.sampler.window = restore_snapshot(log_pass.sampler.window, "window", arrays)
        log_pass.sampler.taken.resume(done)
    return done


def _finish(
    work: WorkFolder,
    source: Source,
    settings: LogSettings,
    manifest: Manifest,
    items: Items,
    log_pass: LogPass,
    writer: LogWriter,
    earlier: EarlierIds,
) -> None:
    impressions, taken = log_pass.state.train_impressions, {}
    if settings.ids is not None and not impressions.any():
        impressions = earlier.train_impressions(len(impressions))
        taken = {"train_impressions": f"those of {settings.ids}: this log has no rows of train or before it"}
    splits = {split: tuple(files) for split, files in writer.files.items() if files}
    cold = rows_on_items(writer.log, splits.get("test", ()), np.asarray(impressions == 0))
    facts = protocol(source, settings, items, log_pass, writer.counts, cold) | dict(manifest.protocol) | taken
    manifest = replace(manifest, splits=splits, lists=writer.list_columns(), protocol=facts)
    write_items(work.data / schema.ITEMS, items, impressions, log_pass.item_categories, log_pass.item_lists)
    earlier.carry_vectors(work.data / schema.ITEMS)
    schema.save_manifest(manifest, writer.log)


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
        by_item[column] = Lists.of(pa.chunked_array([maps[column].add_lists(pa.concat_arrays([of_unknown, found]))]))
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
    source: Source, settings: LogSettings, items: Items, log_pass: LogPass, counts: Counter[str], cold_rows: int
) -> dict[str, object]:
    """manifest.protocol. counts: see `LogWriter`. cold_rows: test rows on items without a train impression."""
    rows = sum(counts[f"{split} rows"] for split in SPLITS)
    positives = sum(counts[f"{split} positives"] for split in SPLITS)
    facts: dict[str, object] = {
        "labels": source.labels,
        "events": log_pass.events_seen,
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
        "split": log_pass.split.protocol(),
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
    if log_pass.sampler is not None:
        facts["negatives"] = {
            "words": _NEGATIVES,
            "per_positive": settings.negatives,
            "window_days": settings.window_days,
            "floor_weight": settings.floor_weight,
            "launch_draws": settings.launch_draws,
            "given_up": log_pass.given_up,
        }
    return facts


def _novelty(counts: Counter[str], kind: str) -> dict[str, object]:
    return {"rows": counts[f"{kind} rows"], "positive_rate": rate(counts[f"{kind} positives"], counts[f"{kind} rows"])}


def rate(part: int, whole: int) -> float:
    """A share as manifests state it: six digits, 0 of nothing."""
    return round(part / whole, 6) if whole else 0.0
