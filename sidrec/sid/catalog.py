"""The catalog: the semantic id of every item.

A catalog folder holds::

    codes.parquet    item_id, sid_1 .. sid_L; weight_1 .. weight_L where the tokenizer gives weights; `extension` of
                     each item if the catalog was extended
    catalog.json     codebook sizes, number of items, fingerprint; number and digest of the item ids, if they have a map
    tokenizer/       the tokenizer's artifact, which encodes new items   (`sidrec fit` adds this and the rest)
    report.json      code quality
    training.jsonl   one line per epoch, for learners that have epochs
    pictures/        code usage, collisions, curves of the training

An extended catalog holds the catalog that it was extended from: the items of extensions 0 to e are the catalog after
extension e, whose fingerprint can be computed. Runs that were trained with it accept the larger one.

Shapes: N items, L levels, E extensions.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from sidrec.config.learners import TokenizerConfig
from sidrec.io.files import readable
from sidrec.io.local_cache import local_file
from sidrec.io.output_folders import FolderKind, Written, replaced_folder
from sidrec.io.places import Place, place
from sidrec.schema import ITEM_ID, UNKNOWN_ID, ContractError, MapDigest, map_digests, read_json
from sidrec.sid.collisions import resolve
from sidrec.sid.tokenizer import Tokenizer
from sidrec.text import near_folder

CODES = "codes.parquet"
CARD = "catalog.json"
TOKENIZER = "tokenizer"
REPORT = "report.json"
PICTURES = "pictures"
JOURNAL = "training.jsonl"
EXTENSION = "extension"  # int32 column of codes.parquet
ITEM_MAP = "item_ids"  # key of catalog.json
CATALOG_VERSION = 1
_CONFIG: TypeAdapter[TokenizerConfig] = TypeAdapter(TokenizerConfig)
NAMED = 5  # numbers in a message

CODE_USAGE, COLLISIONS, TRAINING = "code_usage.png", "collision_groups.png", "training.png"  # files in PICTURES
FILES = {CODES, CARD, REPORT, JOURNAL, f"{TOKENIZER}/tokenizer.json", f"{TOKENIZER}/arrays.safetensors"}
FILES |= {f"{PICTURES}/{name}" for name in (CODE_USAGE, COLLISIONS, TRAINING)}


def _written(folder: Path) -> Written | None:
    """Matches the files that sidrec writes into a catalog; None if the folder is no catalog."""
    try:
        card = read_json(folder / CARD, "a catalog")
    except ContractError:
        return None
    ours = isinstance(card, dict) and {"version", "codebook_sizes", "fingerprint"} <= set(card)
    return FILES.__contains__ if ours else None


CATALOG = FolderKind("a catalog that sidrec wrote", _written)


@dataclass(frozen=True, eq=False)
class Catalog:
    """SIDs of all items. Items may be given in any order; they are sorted by id.

    item_ids_N: int64 from 1 on, no id twice.
    codes_NL: int64, level l in [0, codebook_sizes[l]).
    weights_NL: float32 per token, finite, or None.
    extension_N: int64, the extension that added each item: 0 for items of the fit, then 1, 2... Left out: all 0.
    item_map: the id map of the items, if their data folder has one. No part of the fingerprint.

    Raises ContractError naming the first item that breaks this.
    """

    item_ids_N: np.ndarray
    codes_NL: np.ndarray
    codebook_sizes: tuple[int, ...]
    weights_NL: np.ndarray | None = None
    extension_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    item_map: MapDigest | None = None

    def __post_init__(self) -> None:
        order = np.argsort(self.item_ids_N, kind="stable")
        object.__setattr__(self, "item_ids_N", np.asarray(self.item_ids_N, dtype=np.int64)[order])
        object.__setattr__(self, "codes_NL", np.asarray(self.codes_NL, dtype=np.int64)[order])
        if self.weights_NL is not None:
            object.__setattr__(self, "weights_NL", np.asarray(self.weights_NL, dtype=np.float32)[order])
        extension_N = self.extension_N if len(self.extension_N) else np.zeros(len(order))
        object.__setattr__(self, "extension_N", np.asarray(extension_N, dtype=np.int64)[order])
        _check(self)

    def __len__(self) -> int:
        return len(self.item_ids_N)

    @property
    def levels(self) -> int:
        """Number of levels L."""
        return len(self.codebook_sizes)

    @property
    def fingerprint(self) -> str:
        """sha256 over item ids, codes, codebook sizes and weights, extension by extension. Checkpoints record it."""
        return self.fingerprints[-1]

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """Of the fitted catalog, of the catalog after each extension, and last of this one: E + 1 of them."""
        found: list[str] = []
        order_N = np.argsort(self.extension_N, kind="stable")
        extensions = int(self.extension_N.max(initial=0)) + 1
        for rows in np.split(order_N, np.searchsorted(self.extension_N[order_N], np.arange(1, extensions))):
            shape = [CATALOG_VERSION, len(rows), self.weights_NL is not None, *self.codebook_sizes]
            digest = hashlib.sha256("".join([*found[-1:], json.dumps(shape)]).encode())
            digest.update(self.item_ids_N[rows].astype("<i8").tobytes())
            digest.update(self.codes_NL[rows].astype("<i8").tobytes())
            if self.weights_NL is not None:
                digest.update(self.weights_NL[rows].astype("<f4").tobytes())
            found.append(digest.hexdigest())
        return tuple(found)

    def codes_by_id(self, number_of_ids: int) -> np.ndarray:
        """Codes indexed by item id: int64 [number_of_ids, L], -1 for ids without a SID, id 0 included.

        Items whose ids are number_of_ids or larger are left out: the log does not have them.
        """
        codes = np.full((number_of_ids, self.levels), -1, dtype=np.int64)
        known = self.item_ids_N < number_of_ids
        codes[self.item_ids_N[known]] = self.codes_NL[known]
        return codes

    def extension_by_id(self, number_of_ids: int) -> np.ndarray:
        """The extension that added each item id: int64 [number_of_ids], 0 for ids without a SID."""
        extension = np.zeros(number_of_ids, dtype=np.int64)
        known = self.item_ids_N < number_of_ids
        extension[self.item_ids_N[known]] = self.extension_N[known]
        return extension

    def weights_by_id(self, number_of_ids: int) -> np.ndarray:
        """Token weights indexed by item id: float32 [number_of_ids, L], 0 for ids without a SID.

        Raises ContractError when the catalog has none.
        """
        if self.weights_NL is None:
            raise ContractError("catalog", "token weights, which a learner with a router gives", "codes alone")
        weights = np.zeros((number_of_ids, self.levels), dtype=np.float32)
        known = self.item_ids_N < number_of_ids
        weights[self.item_ids_N[known]] = self.weights_NL[known]
        return weights

    def extend(
        self, new_item_ids: np.ndarray, vectors: np.ndarray, tokenizer: Tokenizer, resolve_collisions: bool = False
    ) -> "Catalog":
        """A larger catalog: the tokenizer encodes the new items; SIDs and table rows of the old items do not change.

        vectors: [new items, V], prepared as for the fit (`read_item_vectors` with the artifact's config and the
            `learner_inputs` of its learner).
        resolve_collisions: as in the artifact's config; new items move away from SIDs that are taken.
        Raises ContractError when the catalog holds an id already, or has other codebook sizes than the tokenizer.
        """
        if tokenizer.codebook_sizes != self.codebook_sizes:
            raise ContractError("tokenizer", f"codebooks of {self.codebook_sizes} codes", tokenizer.codebook_sizes)
        again = np.intersect1d(new_item_ids, self.item_ids_N)
        if len(again):
            raise ContractError(
                "new items", "ids that the catalog does not hold yet", f"{len(again)}, first {again[0]}"
            )
        if not len(new_item_ids):
            return self
        new = tokenizer.encode(vectors)
        codes_NL = new.codes_NL
        if resolve_collisions:
            codes_NL = resolve(vectors, codes_NL, tokenizer, self.codes_NL).codes_NL
        if (new.weights_NL is None) != (self.weights_NL is None):
            raise ContractError("tokenizer", "token weights exactly when the catalog has them", new.weights_NL)
        weights = None
        if self.weights_NL is not None and new.weights_NL is not None:
            weights = np.concatenate([self.weights_NL, new.weights_NL])
        return Catalog(
            np.concatenate([self.item_ids_N, new_item_ids]),
            np.concatenate([self.codes_NL, codes_NL]),
            self.codebook_sizes,
            weights,
            np.concatenate([self.extension_N, np.full(len(new_item_ids), len(self.fingerprints))]),
            self.item_map,
        )

    def save(self, path: Path) -> None:
        """Writes a folder with codes.parquet and catalog.json only, in one step; replaces an existing catalog.

        Raises ContractError where something else exists.
        """
        with replaced_folder(path, CATALOG) as partial:
            write_catalog(self, partial)


def load_catalog(path: Place | str) -> Catalog:
    """Reads a catalog folder. Raises ContractError when it is no catalog, or its codes changed since it was saved."""
    path = place(path)
    codebook_sizes, fingerprint, item_map = _read_card(path / CARD)
    table = _read_codes(path / CODES, len(codebook_sizes))
    levels = range(1, len(codebook_sizes) + 1)
    codes = np.stack([table[f"sid_{level}"].to_numpy() for level in levels], axis=1)
    weights = None
    if "weight_1" in table.column_names:
        weights = np.stack([table[f"weight_{level}"].to_numpy() for level in levels], axis=1)
    extension = {"extension_N": table[EXTENSION].to_numpy()} if EXTENSION in table.column_names else {}
    catalog = Catalog(table[ITEM_ID].to_numpy(), codes, codebook_sizes, weights, **extension, item_map=item_map)
    if catalog.fingerprint != fingerprint:
        raise ContractError(f"{path}, fingerprint", f"{fingerprint} as {CARD} says", catalog.fingerprint)
    return catalog


def read_codebook_sizes(path: Place) -> tuple[int, ...]:
    """The codebook sizes of a catalog folder, one a level, without its codes. Raises ContractError."""
    return _read_card(path / CARD)[0]


def fitted_config(path: Place) -> TokenizerConfig | None:
    """The config of the tokenizer in a catalog folder; None without a tokenizer, or with one that cannot be read."""
    try:
        return _CONFIG.validate_python(read_json(path / TOKENIZER / "tokenizer.json", "a tokenizer artifact")["config"])
    except (ContractError, ValidationError, KeyError, TypeError):
        return None


def write_catalog(catalog: Catalog, folder: Path) -> None:
    """Adds codes.parquet and catalog.json to a folder that the caller replaces in one step."""
    columns = {ITEM_ID: catalog.item_ids_N}
    columns |= {f"sid_{level + 1}": catalog.codes_NL[:, level].astype(np.int32) for level in range(catalog.levels)}
    if catalog.weights_NL is not None:
        columns |= {f"weight_{level + 1}": catalog.weights_NL[:, level] for level in range(catalog.levels)}
    if catalog.extension_N.any():
        columns[EXTENSION] = catalog.extension_N.astype(np.int32)
    pq.write_table(pa.table(columns), folder / CODES)
    card: dict[str, object] = {
        "version": CATALOG_VERSION,
        "items": len(catalog),
        "codebook_sizes": list(catalog.codebook_sizes),
        "fingerprint": catalog.fingerprint,
    }
    if catalog.item_map is not None:
        card[ITEM_MAP] = asdict(catalog.item_map)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _read_card(path: Place) -> tuple[tuple[int, ...], str, MapDigest | None]:
    if not path.exists():
        got = f"no such file{near_folder(path.parent, CARD)}"
        raise ContractError(path, "a catalog, as `sidrec fit` makes it", got)
    card = read_json(path, "a catalog, as `sidrec fit` makes it")
    try:
        version = card["version"]
        codebook_sizes = tuple(int(size) for size in card["codebook_sizes"])
        fingerprint = str(card["fingerprint"])
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ContractError(path, "JSON with version, codebook_sizes and fingerprint", repr(error)) from None
    if version != CATALOG_VERSION:
        raise ContractError(f"{path}, version", str(CATALOG_VERSION), version)
    item_map = map_digests({ITEM_ID: card[ITEM_MAP]}, str(path))[ITEM_ID] if ITEM_MAP in card else None
    return codebook_sizes, fingerprint, item_map


def _read_codes(path: Place, levels: int) -> pa.Table:
    if not path.is_file():
        raise ContractError(path, "the catalog's codes", "no such file")
    with readable(path):
        table = pq.read_table(local_file(path))
    sids = [f"sid_{level}" for level in range(1, levels + 1)]
    weights = [f"weight_{level}" for level in range(1, levels + 1)]
    names = [name for name in table.column_names if name != EXTENSION]
    if names not in ([ITEM_ID, *sids], [ITEM_ID, *sids, *weights]) or len(table.column_names) > len(names) + 1:
        raise ContractError(path, f"the columns {[ITEM_ID, *sids]}", table.column_names)
    for name in table.column_names:
        kind, right = table.schema.field(name).type, pa.types.is_integer
        if name in weights:
            right = pa.types.is_floating
        if not right(kind) or table[name].null_count:
            number = "floats" if name in weights else "integers"
            missing = f"{kind} with {table[name].null_count} missing"
            raise ContractError(f"{path}, column {name}", f"{number} without missing values", missing)
    return table


def _check(catalog: Catalog) -> None:
    ids, codes, sizes = catalog.item_ids_N, catalog.codes_NL, np.asarray(catalog.codebook_sizes)
    if codes.shape != (len(ids), len(sizes)):
        raise ContractError("catalog, codes", f"shape {(len(ids), len(sizes))}", codes.shape)
    if len(ids) and ids[0] <= UNKNOWN_ID:
        raise ContractError("catalog, item ids", f"ids above {UNKNOWN_ID}, which means unknown", int(ids[0]))
    twice = np.flatnonzero(np.diff(ids) == 0)
    if len(twice):
        raise ContractError("catalog, item ids", "every id once", f"{ids[twice[0]]} twice")
    bad_item, bad_level = np.nonzero((codes < 0) | (codes >= sizes))
    if len(bad_item):
        item, level = bad_item[0], bad_level[0]
        where = f"catalog, item {ids[item]}, level {level + 1}"
        raise ContractError(where, f"a code in [0, {sizes[level]})", int(codes[item, level]))
    extensions = np.unique(catalog.extension_N)
    if catalog.extension_N.shape != ids.shape or not np.array_equal(extensions, np.arange(len(extensions))):
        expected = "numbers 0, 1, 2... without a gap, one per item"
        raise ContractError(f"catalog, column {EXTENSION}", expected, extensions[:NAMED].tolist())
    weights = catalog.weights_NL
    if weights is not None and (weights.shape != codes.shape or not np.isfinite(weights).all()):
        raise ContractError("catalog, weights", f"finite values of shape {codes.shape}", weights.shape)
