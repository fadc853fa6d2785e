"""A raw log to a data folder: order the events, pass over them once, write items and manifest, publish.

Interrupted anywhere, the same command continues after the last finished partition.
"""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.day_window import DayWindow
from data_prep.event_order import NEVER, OrderedLog, order_events
from data_prep.events import Items, Source
from data_prep.item_table import category_ids, write_items
from data_prep.log_pass import ROW_DENSE, STATS, LogPass, PassState
from data_prep.log_writer import LogWriter, rows_on_items
from data_prep.negatives import Launches, Sampler, Taken
from data_prep.progress import rows_bar
from data_prep.protocol import protocol
from data_prep.settings import LogSettings
from data_prep.snapshot import load_snapshot, restore, save_snapshot
from data_prep.splits import SPLITS, make_split
from data_prep.work_folder import WorkFolder, file_facts
from sidrec import schema
from sidrec.schema import ContractError, Manifest


def build(
    source: Source, out: Path, settings: LogSettings, implicit: bool, inputs: tuple[Path, ...] = ()
) -> WorkFolder:
    """Everything but the publishing, so that callers can add to `data` first. Bad input leaves nothing behind.

    implicit: the log holds only positives, negatives are sampled. inputs: what the command reads beside the source's
    files, or the folder of these. Raises ContractError for whatever is wrong with the input, and for an OUT that must
    not be replaced.
    """
    settings.check()
    configuration = {
        "source": source.name,
        "settings": asdict(replace(settings, overwrite=False)),
        "implicit": implicit,
        "files": file_facts(source.files),
        "schema": schema.SCHEMA_VERSION,
        "details": repr(source),
    }
    work = WorkFolder.open(out, configuration, settings.overwrite, (*source.files, *inputs))
    try:
        _fill(work, source, settings, implicit)
    except ContractError:
        work.discard()
        raise
    return work


def _fill(work: WorkFolder, source: Source, settings: LogSettings, implicit: bool) -> None:
    log = order_events(source, work.scratch / "order", settings.partition_rows)
    items = source.items(log.items)
    categories, ids = category_ids(items)
    manifest = Manifest(
        source=source.name,
        seed=settings.seed,
        ids={schema.USER_ID: log.users + 1, schema.ITEM_ID: len(log.items) + 1, **ids, **log.ids},
        dense=(*ROW_DENSE, *source.dense),
        stats=STATS,
        history_length=settings.history,
        splits={},
    )
    sampler = _sampler(log, settings, work.scratch) if implicit else None
    log_pass = LogPass(
        PassState.empty(log.users + 1, len(log.items) + 1, settings.history, settings.recent_days),
        make_split(settings.split, log, settings.validation_share, settings.test_share),
        categories,
        sampler,
    )
    extra = [pa.field(name, pa.float32()) for name in source.extra]
    writer = LogWriter(work.data / schema.LOG, pa.schema([*schema.log_schema(manifest), *extra]))
    _pass_over(log, log_pass, writer, work.scratch)
    _finish(work, source, settings, manifest, items, log_pass, writer)


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
    """Puts back the last snapshot, if there is one. Returns the number of finished partitions."""
    path = scratch / "snapshot.npz"
    if not path.exists():
        return 0
    arrays = load_snapshot(path)
    done = int(arrays["done"])
    log_pass.state = restore(log_pass.state, "state", arrays)
    log_pass.events_seen, log_pass.given_up = int(arrays["events_seen"]), int(arrays["given_up"])
    writer.resume(str(arrays["facts"]))
    if log_pass.sampler is not None:
        log_pass.sampler.window = restore(log_pass.sampler.window, "window", arrays)
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
) -> None:
    for split in SPLITS:
        wanted = split != "validation" or settings.validation_share > 0
        if wanted and not writer.files[split]:
            raise ContractError("the log", f"rows in the split {split}", "none (too few events for this share)")
    impressions = log_pass.state.train_impressions
    splits = {split: tuple(files) for split, files in writer.files.items() if files}
    cold = rows_on_items(writer.log, splits["test"], np.asarray(impressions == 0))
    manifest = replace(
        manifest, splits=splits, protocol=protocol(source, settings, items, log_pass, writer.counts, cold)
    )
    write_items(work.data / schema.ITEMS, items, impressions)
    schema.save_manifest(manifest, writer.log)
