"""Small Criteo .npy files for tests, and TorchRec's own reader beside ours."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.criteo_prep_alone import with_plain_files

Paths = tuple[list[str], list[str], list[str]]


def write_days(folder: Path, rows: list[int], sparse: type = np.int32, largest_id: int = 40) -> Paths:
    """Random days; the first dense column is the row's number over all files."""
    random, number = np.random.default_rng(sum(rows)), 0
    paths: Paths = ([], [], [])
    for day, count in enumerate(rows):
        dense = random.random((count, 13)).astype(np.float32)
        dense[:, 0] = np.arange(number, number + count)
        number += count
        arrays = {
            "dense": dense,
            "sparse": random.integers(0, largest_id + 1, (count, 26)).astype(sparse),
            "labels": random.integers(0, 2, (count, 1)).astype(np.int32),
        }
        for (kind, array), names in zip(arrays.items(), paths, strict=True):
            names.append(str(folder / f"day_{day}_{kind}.npy"))
            np.save(names[-1], array)
    return paths


def torchrec_reader(*arguments: Any, **named: Any) -> Any:
    """An InMemoryBinaryCriteoIterDataPipe."""
    with_plain_files()
    from torchrec.datasets.criteo import InMemoryBinaryCriteoIterDataPipe

    return InMemoryBinaryCriteoIterDataPipe(*arguments, **named)
