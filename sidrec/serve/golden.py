"""Golden rows: some rows of the split that an export compared, with the trained model's logits.

    golden.npz      item [B], history [B, T], stats [B, S], dense [B, X], logit [B];
                    ids_N, lengths_N [B]: of the N-th context column, list after list

A scorer scores them when it opens a version, and so finds an onnxruntime, a processor or a file that computes otherwise
before its first answer. Ids are those of the tables: source ids of users do not leave the log.

Shapes: B rows, T history positions, S statistics, X dense columns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sidrec.errors import ContractError
from sidrec.serve.bundle import Bundle

GOLDEN = "golden.npz"
ONE_BY_ONE = 8
"""Rows that are also scored as requests of one candidate."""
_ARRAYS = ("item", "history", "stats", "dense", "logit")
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class GoldenRows:
    """item_B, history_BT: item ids, 0 is padding. context: column -> its ids, list after list, and each list's length.
    logit_B: of the trained model."""

    item_B: Ints
    history_BT: Ints
    stats_BS: Floats
    dense_BX: Floats
    context: Mapping[str, tuple[Ints, Ints]]
    logit_B: Floats

    def save(self, path: Path) -> None:
        """Writes golden.npz."""
        values = (self.item_B, self.history_BT, self.stats_BS, self.dense_BX, self.logit_B)
        arrays: dict[str, Any] = dict(zip(_ARRAYS, values, strict=True))
        for number, (ids, length_B) in enumerate(self.context.values()):
            arrays |= {f"ids_{number}": ids, f"lengths_{number}": length_B}
        np.savez(path, **arrays)

    @classmethod
    def of(cls, bundle: Bundle) -> "GoldenRows | None":
        """Those of a version; None if it has none. Raises ContractError."""
        if GOLDEN not in bundle.description.files:
            return None
        path = bundle.folder / GOLDEN
        try:
            with np.load(path) as found:
                item_B, history_BT, stats_BS, dense_BX, logit_B = (found[name] for name in _ARRAYS)
                columns = enumerate(bundle.description.context)
                context = {of.name: (found[f"ids_{number}"], found[f"lengths_{number}"]) for number, of in columns}
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise ContractError(path, "golden rows, as sidrec export writes them", error) from None
        return cls(item_B, history_BT, stats_BS, dense_BX, context, logit_B)

    def row_inputs(self, bundle: Bundle) -> dict[str, NDArray[Any]]:
        """Inputs of the graph of rows."""
        made = bundle.of_rows(self.item_B, self.history_BT) | {"stats": self.stats_BS, "dense": self.dense_BX}
        for name, (ids, length_B) in self.context.items():
            made[f"context_{name}"] = bundle.context[name].means(ids, length_B)
        return made

    def request_inputs(self, bundle: Bundle) -> Iterator[dict[str, NDArray[Any]]]:
        """Inputs of the graph of requests, for the first rows one by one."""
        rows = self.row_inputs(bundle)
        for row in range(min(ONE_BY_ONE, len(self.item_B))):
            own = slice(row, row + 1)
            history_T = self.history_BT[row]
            of_row = {
                name: values[own] for name, values in rows.items() if name.startswith(("stats", "dense", "context_"))
            }
            yield of_row | bundle.of_request(self.item_B[own], history_T[history_T > 0])
