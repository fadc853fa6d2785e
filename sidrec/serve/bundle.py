"""A version of a bundle: its description, and its arrays opened and checked.

    bundle.json             Description, with size and checksum of every other file
    rows.onnx               B rows, each with a history of its own
    request.onnx            C candidates that share one history
    explain.onnx            B rows: what explains their logits
    weights_of_sid.f16.npy  weights of the granularities in each SID's vector
    golden.npz              rows with the trained model's logits: `sidrec.serve.golden`
    NAME.f16.npy            rows of an input of the graphs, or of a context column: `sidrec.serve.row_store`
    index_NAME.npy          item id -> row of a store, for stores without a row per item
    ids/of_COLUMN/          source id -> id: `sidrec.serve.id_lookup`

Shapes: U items, I item ids, M rows; B rows, T history positions, C candidates, K distinct SIDs of candidates.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidrec.errors import ContractError
from sidrec.io.files import read_json
from sidrec.io.places import Place
from sidrec.serve.calibration import Calibration
from sidrec.serve.id_lookup import UNKNOWN, IdLookup, ids_folder
from sidrec.serve.row_store import Precision, RowStore
from sidrec.serve.versions import DESCRIPTION, version_folder

FORMAT = 1
BLOCK = 1 << 22
HID, SID = "hid", "sid"
"""Indexes from item ids to rows: of a hashed table; of SIDs, 0 for none."""
WEIGHTS, WEIGHT = "weights_of_sid", "weight"
"""The store of weights of granularities, and the prefix of their names."""
HAS_SID = "has_sid"
"""The input of the graphs that says whether an item has a SID."""
NAME_LETTERS = 16
"""Letters of a version's name."""


@dataclass(frozen=True)
class Store:
    """precision: of its rows. index: the index from item ids to its rows; empty where row i belongs to item id i."""

    precision: Precision
    index: str = ""


@dataclass(frozen=True)
class ContextColumn:
    """A column of ids besides the item's. lists: whether a row has several, whose vectors are averaged."""

    name: str
    precision: Precision
    lists: bool = False


@dataclass(frozen=True)
class Transform:
    """How numbers x of the column `source` become a dense column: (log(1 + max(x, 0)) - mean) / deviation; a missing
    number becomes 0, and 1 in the column `missing`, if there is one."""

    source: str
    mean: float
    deviation: float
    missing: str = ""


@dataclass(frozen=True)
class Explained:
    """What explains scores. outputs: of explain.onnx; gate: g, the weight of the HID. alignment: what the comparison of
    target and history adds to the logit. granularities: features of a SID whose weights are stored."""

    outputs: tuple[str, ...] = ()
    granularities: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all numbers that explain a score."""
        return (*self.outputs, *(f"{WEIGHT}_{name}" for name in self.granularities))


@dataclass(frozen=True)
class File:
    """bytes and SHA-256 of a file."""

    bytes: int
    sha256: str

    def check(self, path: Path, remedy: str, content: bool = True) -> None:
        """Raises ContractError unless the file is this one. content: read it, besides its size."""
        if not path.is_file():
            raise ContractError(path, f"a file of {self.bytes:,} bytes", "no such file")
        size = path.stat().st_size
        if size != self.bytes:
            raise ContractError(path, f"{self.bytes:,} bytes", f"{size:,}; {remedy}")
        if content and file_of(path) != self:
            raise ContractError(path, "the content that was exported", f"another one; {remedy}")


@dataclass(frozen=True)
class Description:
    """The content of bundle.json.

    run, step: the training run and its step. recipe, catalog, id_maps: fingerprints; empty without a catalog or maps.
    items: I, the largest item id and one. history_length: positions of a history; longer ones lose their oldest.
    dense, stats: names of these columns, in the order of the graphs. transforms: dense column -> how it is made.
    context: columns in the order of the graphs. stores: input of the graphs -> its rows for items.
    ids: id column -> seed of its index; without one, ids are numbers. tolerance, difference: the largest difference to
    the trained model's logits that was allowed, and that was found. made_with: package -> version. calibration: from
    logits to probabilities; None if the export was asked for none.
    """

    run: str
    step: int
    recipe: str
    catalog: str
    id_maps: str
    items: int
    history_length: int
    dense: tuple[str, ...]
    stats: tuple[str, ...]
    context: tuple[ContextColumn, ...]
    stores: Mapping[str, Store]
    ids: Mapping[str, int]
    tolerance: float
    difference: float
    made_with: Mapping[str, str]
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)
    calibration: Calibration | None = None
    explained: Explained = Explained()
    format: int = FORMAT

    @cached_property
    def version(self) -> str:
        """The name of the version: a digest of all that the description says, the files' checksums included."""
        return sha256(self.text().encode()).hexdigest()[:NAME_LETTERS]

    def text(self) -> str:
        """bundle.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Description":
        """Raises ContractError naming the key that is missing, unknown or wrong."""
        path = folder / DESCRIPTION
        raw = read_json(path, "the description of a bundle")
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != FORMAT:
            raise ContractError(f"{path}, format", f"{FORMAT}", found)
        names = {each.name for each in fields(cls)}
        if raw.keys() != names:
            got = f"missing {sorted(names - raw.keys())}, unknown {sorted(raw.keys() - names)}"
            raise ContractError(path, f"the keys {sorted(names)}", got)
        try:
            return cls(**_typed(raw))
        except (TypeError, AttributeError, KeyError) as error:
            raise ContractError(path, "values of the types that sidrec export writes", error) from None


def _typed(raw: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {name: tuple(raw[name]) for name in ("dense", "stats")}
    made["context"] = tuple(ContextColumn(**each) for each in raw["context"])
    for name, kind in (("stores", Store), ("transforms", Transform), ("files", File)):
        made[name] = {key: kind(**value) for key, value in raw[name].items()}
    made["explained"] = Explained(**{name: tuple(values) for name, values in raw["explained"].items()})
    made["calibration"] = Calibration.read(raw["calibration"])
    return {**raw, **made}


def file_of(path: Path) -> File:
    """Size and checksum, read a block at a time. Raises OSError."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return File(path.stat().st_size, digest.hexdigest())


def inside(folder: Path, name: str, where: Path) -> Path:
    """The path of a file that `where` names. Raises ContractError for one outside the folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ContractError(f"{where}, files", "files within its folder", name)
    return path


Distinct = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Ids [N] -> the distinct ones [U], and the place of each id among them [N]."""


def sorted_distinct(id_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """By sorting, which is fast for a few thousand ids."""
    return np.unique(id_N, return_inverse=True)


class Bundle:
    """An opened version. Its arrays are memory-mapped: it takes as much memory as its rows are used."""

    def __init__(self, path: Place, check: bool = True) -> None:
        """path: a bundle, whose version in use is opened, or a version. check: compare every file with its checksum.

        Raises ContractError naming the file that is missing, cut or changed.
        """
        self.folder = version_folder(path)
        self.description = Description.read(self.folder)
        self._check_files(check)
        self.stores = {name: RowStore(self.folder, name, of.precision) for name, of in self.description.stores.items()}
        self.context = {of.name: RowStore(self.folder, of.name, of.precision) for of in self.description.context}
        indexes = {of.index for of in self.description.stores.values() if of.index}
        if others := sorted(indexes - {HID, SID}):
            raise ContractError(f"{self.folder / DESCRIPTION}, stores", f"the indexes {HID} and {SID}", others)
        self.indexes = {name: np.load(self.folder / f"index_{name}.npy", mmap_mode="r") for name in indexes}
        with_weights = bool(self.description.explained.granularities)
        self._weights = RowStore(self.folder, WEIGHTS, "f16") if with_weights else None
        self.ids = {
            column: IdLookup(ids_folder(self.folder, column), seed) for column, seed in self.description.ids.items()
        }

    @property
    def version(self) -> str:
        """The version's name."""
        return self.description.version

    def _check_files(self, content: bool) -> None:
        for name, expected in self.description.files.items():
            path = inside(self.folder, name, self.folder / DESCRIPTION)
            expected.check(path, "export the bundle again", content)

    def of_items(self, item_U: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Input of the graphs -> its rows for these item ids; 0 is an unknown item, whose rows are zero."""
        rows = {"": item_U} | {name: of_item_I[item_U].astype(np.int64) for name, of_item_I in self.indexes.items()}
        found = {name: store.take(rows[self.description.stores[name].index]) for name, store in self.stores.items()}
        if SID in rows:
            found[HAS_SID] = rows[SID] > 0
        return found

    def of_rows(
        self, item_B: NDArray[np.int64], history_BT: NDArray[np.int64], distinct: Distinct = sorted_distinct
    ) -> dict[str, NDArray[Any]]:
        """Inputs of the graph of rows that concern items. Item ids; 0 is an unknown item, and padding.

        distinct: may order them in another way, but the first comes first: UNKNOWN, whose place is that of padding.
        """
        distinct_U, bag_N = distinct(np.concatenate([[UNKNOWN], item_B, history_BT.ravel()]))
        target_B, bag_P = np.split(bag_N[1:], [len(item_B)])
        return {**self.of_items(distinct_U), "target": target_B, "history": bag_P.reshape(history_BT.shape)}

    def of_request(self, candidate_C: NDArray[np.int64], history_T: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Inputs of the graph of requests that concern items. An empty history becomes one position of padding."""
        history_1T = history_T[None, :] if len(history_T) else np.full((1, 1), UNKNOWN)
        made = self.of_rows(candidate_C, history_1T)
        if (row_of_item := self.indexes.get(SID)) is not None:
            _, place_K, same_as_C = np.unique(row_of_item[candidate_C], return_index=True, return_inverse=True)
            made |= {"distinct": made["target"][place_K], "same_as": same_as_C}
        return made

    def weights_of(self, item_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights of the granularities in each item's e_sid, [B, G]; NaN for an item without a SID."""
        assert self._weights is not None, "a version that explains by granularity"
        row_B = self.indexes[SID][item_B].astype(np.int64)
        return np.where(row_B[:, None] > 0, self._weights.take(row_B), np.float32(np.nan))
