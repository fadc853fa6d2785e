"""Moments of the statistics columns, measured on the train split: what the standardisation of counts needs."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sidrec.schema import LOG, Manifest


def stat_moments(
    data: Path, manifest: Manifest, split: str = "train", rows: int = 1_000_000
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of log1p(stat_*), float64 [S] each, over about `rows` rows of the split.

    Row groups are taken at equal distances, so that every period of the log counts; small splits are read whole.
    """
    files = [pq.ParquetFile(data / LOG / file.path) for file in manifest.files(split)]
    groups = [(file, index) for file in files for index in range(file.num_row_groups)]
    wanted = max(1, min(len(groups), round(len(groups) * rows / max(1, manifest.rows(split)))))
    total, first, second = 0, np.zeros(len(manifest.stats)), np.zeros(len(manifest.stats))
    for position in np.linspace(0, len(groups) - 1, wanted).round().astype(int) if groups else []:
        file, index = groups[position]
        table = file.read_row_group(index, columns=list(manifest.stats))
        logs_NS = np.log1p(np.stack([table[name].to_numpy() for name in manifest.stats], axis=1, dtype=np.float64))
        total += len(logs_NS)
        first += logs_NS.sum(axis=0)
        second += np.square(logs_NS).sum(axis=0)
    mean = first / max(1, total)
    return mean, np.sqrt(np.maximum(second / max(1, total) - np.square(mean), 0))
