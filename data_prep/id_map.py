"""Source ids (text) to dense ids 1, 2, ... in order of first appearance; 0 stays free for "not known"."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


class IdMap:
    """A growing dictionary of ids. Holds every source id in memory."""

    def __init__(self, source_ids: Iterable[str] = ()) -> None:
        self._dense: dict[str, int] = {}
        for source_id in source_ids:
            self._dense.setdefault(source_id, len(self._dense) + 1)

    def __len__(self) -> int:
        return len(self._dense)

    def source_ids(self) -> list[str]:
        """Source ids in order of their dense ids, starting with id 1."""
        return list(self._dense)

    def get(self, source_id: str) -> int:
        """The dense id, 0 when there is none."""
        return self._dense.get(source_id, 0)

    def add(self, column: pa.ChunkedArray) -> np.ndarray:
        """Dense ids int64 [rows] of a text column; new ones are appended, empty or missing text is id 0."""
        encoded = column.combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        dense = self._dense
        known = [dense.setdefault(text, len(dense) + 1) if text else 0 for text in encoded.dictionary.to_pylist()]
        codes = encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
        return np.asarray([*known, 0], dtype=np.int64)[codes]

    def save(self, path: Path) -> None:
        pq.write_table(pa.table({"source_id": pa.array(self._dense, pa.string())}), path)

    @classmethod
    def load(cls, path: Path) -> "IdMap":
        return cls(pq.read_table(path)["source_id"].to_pylist())
