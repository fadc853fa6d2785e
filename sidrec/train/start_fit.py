"""Whether another run's checkpoint fits a new run's model, found out from its index and recipe before a table is made.

Shapes: R rows of a table, D its width.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from sidrec.checkpoint.new_model import is_of
from sidrec.checkpoint.piece import NAMES, CheckpointError
from sidrec.checkpoint.piece_names import MODEL
from sidrec.checkpoint.stored_checkpoint import StoredCheckpoint
from sidrec.checkpoint.stored_table import table_name
from sidrec.config import Recipe
from sidrec.config.index import ExactIndex
from sidrec.config.item import HashedItem
from sidrec.data.item_tables import HID
from sidrec.model.ranker import Ranker
from sidrec.train.data import Data


@dataclass(frozen=True)
class NewModel:
    """The model of a run that is about to start, before there is any of it."""

    recipe: Recipe
    data: Data

    @cached_property
    def tensors(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Key of a weight or buffer, as checkpoints have it -> type and shape."""
        with torch.device("meta"):
            state = Ranker(self.recipe.model, self.data.sizes).state_dict()
        return {f"{MODEL}/{name}": (NAMES[value.dtype], tuple(value.shape)) for name, value in state.items()}

    @cached_property
    def tables(self) -> Mapping[str, tuple[int, ...]]:
        """Table -> [R, D]."""
        named = {table_name(key): shape for key, (_, shape) in self.tensors.items()}
        return {name: shape for name, shape in named.items() if name is not None}

    @property
    def sid_tables(self) -> list[str]:
        """Tables whose rows stand for parts of SIDs."""
        return [name for name in self.data.sizes.item_tables if name != HID]

    @property
    def managed(self) -> bool:
        """Whether the HID table deals its rows itself."""
        return HID in self.data.sizes.item_tables and self.data.sizes.item_tables[HID].managed is not None

    def may_grow(self, table: str) -> bool:
        """Whether more rows leave the old ones what they were: where a row's number is an id of the log."""
        item = self.recipe.model.item
        numbered = isinstance(item, HashedItem) and isinstance(item.hid_index, ExactIndex)
        return table in self.recipe.model.context or (table == HID and numbered)


def check_fit(found: StoredCheckpoint, model: NewModel, optimizer: bool, without: Collection[str]) -> None:
    """Raises CheckpointError where the checkpoint's weights, and optimizer's state if wanted, cannot be the model's."""
    _check_meaning(found, model, without)
    wanted = {key: value for key, value in model.tensors.items() if not is_of(key, without)}
    stored = [key for key in found.index.tensors if key.startswith(f"{MODEL}/") and not is_of(key, without)]
    for key in sorted(wanted, key=_tables_first):
        if key not in found.index.tensors:
            raise CheckpointError(f"{found.path}: expected {_words(key)} of this model, got none{_anew(key)}")
    for key in sorted(stored, key=_tables_first):
        if key not in wanted:
            raise CheckpointError(f"{found.path}: expected nothing but what this model has, got {_words(key)}")
    for key, (dtype, shape) in wanted.items():
        _check_tensor(found, model, key, dtype, shape)
    if optimizer:
        _check_optimizer(found, model.recipe, without)


def _check_meaning(found: StoredCheckpoint, model: NewModel, without: Collection[str]) -> None:
    """Rows are the same ids' and codes' as they were."""
    sids = [name for name in model.sid_tables if name not in without]
    if sids and found.position.catalog != model.data.fingerprint:
        raise CheckpointError(
            f"{found.path}: expected the catalog {found.position.catalog} it was trained with, got "
            f"{model.data.fingerprint}, whose codes are other rows; start.without: [{', '.join(sids)}] starts these "
            "tables anew"
        )
    item, before = model.recipe.model.item, found.recipe.model.item
    if not isinstance(item, HashedItem) or HID in without:
        return
    if model.managed:
        raise CheckpointError(
            "start.checkpoint: expected a HID table whose rows stay with their ids, got hid_index: managed_collision; "
            f"start.without: [{HID}] starts it anew"
        )
    if isinstance(before, HashedItem) and before.hid_index != item.hid_index:
        raise CheckpointError(
            f"{found.path}: expected the hid_index {before.hid_index} it was trained with, got {item.hid_index}; "
            f"start.without: [{HID}] starts the table anew"
        )


def _check_tensor(found: StoredCheckpoint, model: NewModel, key: str, dtype: str, shape: tuple[int, ...]) -> None:
    stored = found.index.tensors[key]
    table = table_name(key)
    widths = stored.shape[1:] == shape[1:]
    grown = table is not None and model.may_grow(table) and widths and stored.shape[0] <= shape[0]
    if stored.dtype != dtype or (stored.shape != shape and not grown):
        expected, got = f"{dtype} {list(shape)}", f"{stored.dtype} {list(stored.shape)}"
        where = f"{found.path}: expected {_words(key)} of {expected}, as this model has"
        raise CheckpointError(f"{where}, got {got}{_anew(key)}")


def _check_optimizer(found: StoredCheckpoint, recipe: Recipe, without: Collection[str]) -> None:
    now, before = recipe.optimizer, found.recipe.optimizer
    kinds = {"tables": (now.tables.kind, before.tables.kind), "dense": (now.dense.kind, before.dense.kind)}
    if HID not in without:
        kinds["hid"] = ((now.hid or now.tables).kind, (before.hid or before.tables).kind)
    for part, (kind, was) in kinds.items():
        if kind != was:
            raise CheckpointError(
                f"{found.path}: expected the optimizer.{part} {was} whose state it holds, got {kind}; "
                "start.optimizer: false leaves all state behind"
            )


def _words(key: str) -> str:
    table = table_name(key)
    return f"the table {table}" if table else f"the layer {key.removeprefix(f'{MODEL}/')}"


def _anew(key: str) -> str:
    """What a table that does not fit can do; a layer can do nothing."""
    table = table_name(key)
    return f"; start.without: [{table}] starts it anew" if table else ""


def _tables_first(key: str) -> bool:
    """Sorts tables before layers, whose shapes often only follow from them."""
    return table_name(key) is None
