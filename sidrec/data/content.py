"""Content vectors of items, on disk: batches read the rows that they need.

Shapes: I item ids, U items of a batch, N items of items.parquet, V width.
"""

import tempfile
from pathlib import Path

import numpy as np

from sidrec.sid.item_vectors import VECTORS, read_item_vectors
from sidrec.sid.scratch_arrays import mapped_array


class ContentVectors:
    """A PerItem of content vectors, in a scratch folder of this process that goes when this object does.

    Loader processes get the folder and map the file themselves: no vector is copied for them.
    """

    def __init__(self, items: Path, columns: tuple[str, ...], ids: int) -> None:
        """Reads vector columns, each scaled to unit length, concatenated. ids: item ids that the log knows.

        Raises ContractError as `read_item_vectors` does.
        """
        self._scratch = tempfile.TemporaryDirectory(prefix="sidrec-content-")
        self._folder = Path(self._scratch.name)
        found = read_item_vectors(items, columns, normalize=True, scratch=self._folder)
        self.width = found.vectors_NV.shape[1]
        known_N = found.item_ids_N < ids
        self._place_I = np.full(ids, -1)
        self._place_I[found.item_ids_N[known_N]] = np.flatnonzero(known_N)
        self._vectors_NV: np.ndarray | None = None

    def __getitem__(self, ids_U: np.ndarray) -> np.ndarray:
        """float32 [U, V], zeros for items without content."""
        if self._vectors_NV is None:
            self._vectors_NV = mapped_array(self._folder, VECTORS)
        place_U = self._place_I[ids_U]
        vectors_UV = self._vectors_NV[place_U]
        vectors_UV[place_U < 0] = 0
        return vectors_UV

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_scratch": None, "_vectors_NV": None}
