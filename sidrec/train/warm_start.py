"""Warm start: a new run takes weights from another run's checkpoint, or rows of tables from files.

Shapes: R rows of a table, D its width, N rows of a part.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer
from tqdm import tqdm

from sidrec.checkpoint.checkpoint_store import fault_of
from sidrec.checkpoint.state import belongs_to, load_partially, state_shards
from sidrec.checkpoint.stored_tables import StoredCheckpoint, open_checkpoint, table_name
from sidrec.checkpoint.table_files import TableSource, check_values, open_table
from sidrec.checkpoint.tensor_shard import DTYPE_NAMES, MODEL, TensorShard
from sidrec.checkpoint.train_state import (
    Inputs,
    check_inputs,
    trained_sid_rows,
)
from sidrec.config import ConfigError, Recipe
from sidrec.data.dataset import Dataset
from sidrec.data.item_tables import HID
from sidrec.errors import CheckpointError, print_warning
from sidrec.id_maps import IdMaps, check_grown
from sidrec.model.fusion_and_gate import IMPRESSIONS
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks, broadcast_object, raise_on_all_ranks, run_on_all_ranks
from sidrec.schema import ITEM_ID, ContractError
from sidrec.text import did_you_mean
from sidrec.train.assembly import announce, inputs_of
from sidrec.train.growth import Growth, find_growth
from sidrec.train.refit import Refit, find_refit


@dataclass(frozen=True)
class WarmStart:
    """Checked sources of a new run's weights.

    optimizer: whether the checkpoint's optimizer state is taken too. without: tables that take nothing from the
    checkpoint. sources: table -> rows from a file, which replace the checkpoint's and have no optimizer state.
    growth: for `start.grow`. refit: for `start.old_catalog`; its tables are among `without` too.
    """

    checkpoint: StoredCheckpoint | None
    optimizer: bool
    without: frozenset[str]
    sources: Mapping[str, TableSource]
    growth: Growth | None = None
    refit: Refit | None = None

    @property
    def facts(self) -> dict[str, object]:
        """The entry "start" of run.json."""
        facts: dict[str, object] = {
            "tables": {name: {"file": source.where, "rows": source.rows} for name, source in self.sources.items()}
        }
        if self.checkpoint is not None:
            facts["checkpoint"] = str(self.checkpoint.path)
            facts["step"] = self.checkpoint.position.step
            carried = self.refit.rows.keys() if self.refit else frozenset()
            facts |= {"optimizer": self.optimizer, "without": sorted(self.without - carried)}
            facts |= {"grown": sorted(self.growth.widened)} if self.growth else {}
            facts |= {"refit": self.refit.facts} if self.refit else {}
        return facts

    def fill(self, model: DistributedModelParallel, optimizer: KeyedOptimizer, ranks: Ranks) -> None:
        """Fills a model that has its initial values; every rank reads only the rows of its shards.

        All ranks call it. Raises CheckpointError or ContractError for files that have changed since they were checked.
        """
        if self.checkpoint is not None:
            kept = optimizer if self.optimizer else None
            load_partially(self.checkpoint, model, kept, self.without, ranks, self.growth)
            if self.refit is not None:
                self.refit.fill(model, kept, ranks)
                announce(ranks, f"SID tables were {self.refit}")
        run_on_all_ranks(ranks, lambda: self._fill_tables(state_shards(model, None, ranks)))

    def _fill_tables(self, shards: list[TensorShard]) -> None:
        for shard in shards:
            source = self.sources.get(table_name(shard.key) or "")
            if source is not None:
                _fill_shard(shard, source)


def _fill_shard(shard: TensorShard, source: TableSource) -> None:
    (first, column), (count, width) = shard.offset, shard.values.shape
    with torch.no_grad():
        for rows_N, values_ND in source.parts(first, first + count):
            shard.values[rows_N - first] = values_ND[:, column : column + width].to(shard.values)


def find_warm_start(recipe: Recipe, data: Dataset, ranks: Ranks) -> WarmStart | None:
    """Opens, reads and checks the sources in the recipe's section `start`, before the model is allocated.

    Returns: None if the section names no source. All ranks call it, and raise together: ConfigError for tables that the
    model does not have; CheckpointError or ContractError for a checkpoint or file that is damaged or does not fit.
    """
    config = recipe.start
    if config.checkpoint is None and not config.tables:
        return None
    model = PlannedModel(recipe, data)
    run_on_all_ranks(ranks, lambda: _check_names(model, (*config.without, *config.tables)))
    sources = run_on_all_ranks(
        ranks, lambda: {name: _source(model, name, file) for name, file in config.tables.items()}
    )
    without = frozenset((*config.without, *sources))
    checkpoint, growth, refit = None, None, None
    if config.checkpoint is not None:
        path = _path_on_first_rank(config.checkpoint, ranks)
        if config.grow:
            growth = run_on_all_ranks(ranks, lambda: find_growth(open_checkpoint(path), recipe, data, model.tensors))
            without |= growth.tables
        if config.old_catalog is not None:
            found = run_on_all_ranks(ranks, lambda: open_checkpoint(path))
            refit = find_refit(found, recipe, data, without, ranks)
            without |= refit.rows.keys()
        checkpoint = run_on_all_ranks(ranks, lambda: _compatible(path, model, without, growth))
        fault = fault_of(checkpoint.path, ranks)
        raise_on_all_ranks(ranks, None if fault is None else CheckpointError(fault))
        carried = refit.rows if refit else ()
        run_on_all_ranks(ranks, lambda: _check_ids(checkpoint, model, without, carried) if ranks.first else None)
    run_on_all_ranks(ranks, lambda: _check_share(sources, ranks))
    return WarmStart(checkpoint, config.optimizer, without, sources, growth, refit)


def _path_on_first_rank(source: Path, ranks: Ranks) -> Path:
    """The checkpoint that rank 0 finds. While another run is training, ranks may find different newest ones."""
    return broadcast_object(ranks, run_on_all_ranks(ranks, lambda: open_checkpoint(source).path))


# Compatibility of another run's checkpoint, from its index and recipe, before a table is allocated.


@dataclass(frozen=True)
class PlannedModel:
    """The model of a new run before it is allocated."""

    recipe: Recipe
    data: Dataset

    @cached_property
    def tensors(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Key of a weight or buffer in a checkpoint -> type and shape."""
        with torch.device("meta"):
            state = Ranker(self.recipe.model, self.data.sizes).state_dict()
        return {f"{MODEL}/{name}": (DTYPE_NAMES[value.dtype], tuple(value.shape)) for name, value in state.items()}

    @cached_property
    def tables(self) -> Mapping[str, tuple[int, ...]]:
        """Table -> [R, D]."""
        named = {table_name(key): shape for key, (_, shape) in self.tensors.items()}
        return {name: shape for name, shape in named.items() if name is not None}

    @property
    def inputs(self) -> Inputs:
        """The columns of numbers that the new run reads."""
        return inputs_of(self.recipe, self.data)

    @property
    def managed(self) -> bool:
        """Whether the HID table is a managed-collision table."""
        return HID in self.data.sizes.item_tables and self.data.sizes.item_tables[HID].managed is not None

    def may_grow(self, table: str) -> bool:
        """Whether a table may have more rows than the checkpoint's: its row numbers are ids of the log."""
        item = self.recipe.model.item
        return table in self.recipe.model.context or (table == HID and item.hid_rows_are_ids)

    def tables_of_ids(self, without: Collection[str], carried: Collection[str]) -> dict[str, list[str]]:
        """Id column of the log -> tables taken from a checkpoint whose rows follow its ids.

        carried: SID tables that are carried over by item ids.
        """
        columns = {HID: ITEM_ID} if self.recipe.model.item.hids is not None else {}
        columns |= {column: column for column in self.recipe.model.context}
        taken = {table: column for table, column in columns.items() if table not in without}
        found: dict[str, list[str]] = {}
        for table, column in (taken | dict.fromkeys(carried, ITEM_ID)).items():
            found.setdefault(column, []).append(table)
        return found


def _compatible(path: Path, model: PlannedModel, without: frozenset[str], growth: Growth | None) -> StoredCheckpoint:
    found = open_checkpoint(path)
    check_compatible(found, model, model.recipe.start.optimizer, without, growth)
    return found


def _check_ids(
    found: StoredCheckpoint, model: PlannedModel, without: Collection[str], carried: Collection[str]
) -> None:
    """Checks that ids keep the rows they have in the checkpoint; warns where nothing tells.

    Raises ContractError naming the column, and the tables that can start anew.
    """
    earlier, warnings = IdMaps(found.position.id_maps), {}
    for column, tables in model.tables_of_ids(without, carried).items():
        data, before = model.recipe.data.path, found.recipe.data.path
        try:
            warnings[check_grown(earlier, found.path, data, before, {column})] = True
        except ContractError as error:
            where, expected, got = error.args
            remedy = f"start.without: [{', '.join(tables)}] starts the {'tables' if tables[1:] else 'table'} anew"
            raise ContractError(where, expected, f"{got}; {remedy}") from None
    for warning in filter(None, warnings):
        print_warning(warning)


def _check_names(model: PlannedModel, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in model.tables:
            hint = did_you_mean(name, model.tables)
            raise ConfigError(f"start: expected tables among {', '.join(model.tables)}, got {name}{hint}")


def _source(model: PlannedModel, name: str, file: str) -> TableSource:
    """Raises ContractError if the file's rows have another width than the table, or are more."""
    if name == HID and model.managed:
        raise ConfigError(f"start.tables: expected tables whose rows stay with their ids, got {name}, which is managed")
    source = open_table(file, name)
    rows, width = model.tables[name]
    if source.width != width or source.rows > rows:
        expected = f"at most {rows:,} rows of width {width}, as the table {name} has"
        raise ContractError(source.where, expected, f"{source.rows:,} of width {source.width}")
    return source


def _check_share(sources: Mapping[str, TableSource], ranks: Ranks) -> None:
    """Checks this rank's share of every file's rows."""
    for source in sources.values():
        share = -(-source.rows // ranks.world)
        first, last = (min(rank * share, source.rows) for rank in (ranks.rank, ranks.rank + 1))
        hidden = None if ranks.first else True
        with tqdm(total=last - first, desc=f"check {source.where}", unit=" rows", delay=1, disable=hidden) as progress:
            check_values(source, first, last, progress.update)


def saved_start_facts(facts: Path) -> dict[str, object]:
    """The entry "start" of a resumed run's run.json; empty if there is none."""
    try:
        before = json.loads(facts.read_bytes())
    except (OSError, ValueError):
        return {}
    return {"start": before["start"]} if isinstance(before, dict) and "start" in before else {}


def check_compatible(
    found: StoredCheckpoint,
    model: PlannedModel,
    optimizer: bool,
    without: Collection[str],
    growth: Growth | None = None,
) -> None:
    """Raises CheckpointError if the checkpoint does not fit: its weights and, if `optimizer`, its optimizer states.

    growth: what the model has more than the checkpoint.
    """
    sids = [name for name in model.data.tables.sid_tables if name not in without]
    remedy = f"; start.without: [{', '.join(sids)}] starts these tables anew"
    if sids and model.recipe.model.item.sids and model.recipe.model.item.sids.subwords is None:
        remedy = f"; start.old_catalog carries its tables over{remedy}"
    sid_rows = trained_sid_rows(found.path, found.position, model.data, without, remedy)
    _check_rows_keep_their_ids(found, model, without)
    check_inputs(found.path, found.position, model.inputs)
    tensors = growth.expected(model.tensors) if growth else model.tensors
    wanted = {key: value for key, value in tensors.items() if not belongs_to(key, without)}
    stored = [key for key in found.index.tensors if key.startswith(f"{MODEL}/") and not belongs_to(key, without)]
    for key in sorted(wanted, key=_tables_first):
        if key not in found.index.tensors:
            raise CheckpointError(f"{found.path}: expected {_named(key)} of this model, got none{_anew(key)}")
    for key in sorted(stored, key=_tables_first):
        if key not in wanted:
            raise CheckpointError(f"{found.path}: expected nothing but what this model has, got {_named(key)}")
    for key, (dtype, shape) in wanted.items():
        _check_tensor(found, model, sid_rows, key, dtype, shape)
    if optimizer:
        _check_optimizer(found, model.recipe, without)


def _check_rows_keep_their_ids(found: StoredCheckpoint, model: PlannedModel, without: Collection[str]) -> None:
    """Raises CheckpointError if a row of the checkpoint belongs to another id or code in this model."""
    item, before = model.recipe.model.item, found.recipe.model.item
    if item.hids is None or HID in without:
        return
    if model.managed:
        raise CheckpointError(
            "start.checkpoint: expected a HID table whose rows stay with their ids, got hid_index: managed_collision; "
            f"start.without: [{HID}] starts it anew"
        )
    if before.hids is not None and before.hids != item.hids:
        raise CheckpointError(
            f"{found.path}: expected the hid_index {before.hids} it was trained with, got {item.hids}; "
            f"start.without: [{HID}] starts the table anew"
        )


def _check_tensor(
    found: StoredCheckpoint,
    model: PlannedModel,
    sid_rows: Mapping[str, int],
    key: str,
    dtype: str,
    shape: tuple[int, ...],
) -> None:
    """sid_rows: SID table -> its rows with the checkpoint's catalog; further rows are those of later extensions."""
    stored = found.index.tensors[key]
    table = table_name(key)
    of_rows = table or key.rpartition(f".{IMPRESSIONS}")[2]
    if of_rows in sid_rows:
        shape = (sid_rows[of_rows], *shape[1:])
    widths = stored.shape[1:] == shape[1:]
    grown = table is not None and model.may_grow(table) and widths and stored.shape[0] <= shape[0]
    if stored.dtype != dtype or (stored.shape != shape and not grown):
        expected, got = f"{dtype} {list(shape)}", f"{stored.dtype} {list(stored.shape)}"
        where = f"{found.path}: expected {_named(key)} of {expected}, as this model has"
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


def _named(key: str) -> str:
    table = table_name(key)
    return f"the table {table}" if table else f"the layer {key.removeprefix(f'{MODEL}/')}"


def _anew(key: str) -> str:
    """How to start a table anew that does not fit; empty for a layer."""
    table = table_name(key)
    return f"; start.without: [{table}] starts it anew" if table else ""


def _tables_first(key: str) -> bool:
    """Sorts tables before layers: a layer often does not fit because a table does not."""
    return table_name(key) is None
