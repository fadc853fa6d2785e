"""Parquet files that are read from beginning to end, a buffer at a time."""

from pathlib import Path

import pyarrow.parquet as pq

BUFFER = 1 << 20  # bytes


def open_stream(path: Path) -> pq.ParquetFile:
    """Opens a file for `iter_batches`. By default pyarrow holds on to all that it has read until the iteration ends,
    so that memory grows with the file."""
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
