"""A data folder from a list of positives, for tests of generative retrieval."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.schema import LOG, LogFile, Manifest, log_schema, save_manifest

Event = tuple[int, int, int]  # user, item, time


def write_events(data: Path, splits: Mapping[str, Sequence[Event]], disliked: Sequence[Event] = ()) -> Path:
    """Writes DATA/log with these rows, label 1, each split sorted by time; `disliked` go to train with label 0."""
    rows = {split: [(*event, 1) for event in events] for split, events in splits.items()}
    rows["train"] = [*rows["train"], *((*event, 0) for event in disliked)]
    ordered = {split: np.array(sorted(found, key=lambda row: row[2])) for split, found in rows.items()}
    together = np.concatenate(list(ordered.values()))
    ids = {"user_id": int(together[:, 0].max()) + 1, "item_id": int(together[:, 1].max()) + 1}
    files = {
        split: (LogFile(f"{split}/part-0.parquet", len(found), int(found[0, 2]), int(found[-1, 2])),)
        for split, found in ordered.items()
    }
    manifest = Manifest("events", 0, ids, (), (), 0, files)
    for split, found in ordered.items():
        user, item, time, label = found.T
        columns = {"label": label.astype(np.float32), "timestamp": time, "user_id": user, "item_id": item}
        table = pa.table({**columns, "history": [[]] * len(found)}, schema=log_schema(manifest))
        path = data / LOG / files[split][0].path
        path.parent.mkdir(parents=True)
        pq.write_table(table, path)
    save_manifest(manifest, data / LOG)
    return data
