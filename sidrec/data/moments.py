"""Moments of the statistics columns, measured on the train split: what the standardisation of counts needs.

Shapes: N rows of a row group, S statistics columns.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.data.split_index import RowGroup, split_index
from sidrec.schema import LOG, ContractError, Manifest


def stat_moments(
    data: Path, manifest: Manifest, split: str = "train", rows: int = 1_000_000
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of log1p(stat_*), float64 [S] each, over about `rows` rows of the split.

    Row groups are taken at equal distances, so that every period of the log counts; small splits are read whole. Rows
    with a count that breaks the contract are left out: the reader refuses them or puts them in quarantine.
    Raises ContractError as `split_index` does, and for a row group that cannot be read.
    """
    groups = split_index(data / LOG, split, manifest)
    wanted = max(1, min(len(groups), round(len(groups) * rows / max(1, manifest.rows(split)))))
    total, first, second = 0, np.zeros(len(manifest.stats)), np.zeros(len(manifest.stats))
    for position in np.linspace(0, len(groups) - 1, wanted).round().astype(int):
        counts_NS = _counts(groups[position], manifest.stats)
        logs_NS = np.log1p(counts_NS[(np.isfinite(counts_NS) & (counts_NS >= 0)).all(axis=1)])
        total += len(logs_NS)
        first += logs_NS.sum(axis=0)
        second += np.square(logs_NS).sum(axis=0)
    mean = first / max(1, total)
    return mean, np.sqrt(np.maximum(second / max(1, total) - np.square(mean), 0))


def _counts(group: RowGroup, stats: tuple[str, ...]) -> np.ndarray:
    """float64 [N, S], NaN for a missing value."""
    try:
        with pq.ParquetFile(group.path) as file:
            table = file.read_row_group(group.group, columns=list(stats))
    except (pa.ArrowException, OSError) as error:
        where = f"{group.path}, row group {group.group}"
        raise ContractError(where, "readable column data", " ".join(str(error).split())) from None
    return np.stack([table[name].to_numpy() for name in stats], axis=1, dtype=np.float64)
