"""A new run that starts from what others have learned: another run's checkpoint, files with rows of tables.

Shapes: R rows of a table, D its width, N rows of a part.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer
from tqdm import tqdm

from sidrec.checkpoint.folder import fault_of
from sidrec.checkpoint.model_pieces import pieces_of
from sidrec.checkpoint.new_model import take_over
from sidrec.checkpoint.piece import CheckpointError, Piece
from sidrec.checkpoint.stored_checkpoint import StoredCheckpoint, open_checkpoint
from sidrec.checkpoint.stored_table import table_name
from sidrec.checkpoint.table_source import TableSource, check_values, open_table
from sidrec.config import ConfigError, Recipe
from sidrec.data.item_tables import HID
from sidrec.parallel.process_group import Ranks, agree, together
from sidrec.schema import ContractError
from sidrec.train.data import Data
from sidrec.train.start_fit import NewModel, check_fit


@dataclass(frozen=True)
class Start:
    """What was found to be sound and to fit.

    optimizer: whether its state is taken over too. without: tables that take nothing from the checkpoint.
    sources: table -> its rows, which take the place of the checkpoint's, and start without state of an optimizer.
    """

    checkpoint: StoredCheckpoint | None
    optimizer: bool
    without: frozenset[str]
    sources: Mapping[str, TableSource]

    @property
    def facts(self) -> dict[str, object]:
        """What run.json keeps of it."""
        facts: dict[str, object] = {
            "tables": {name: {"file": source.where, "rows": source.rows} for name, source in self.sources.items()}
        }
        if self.checkpoint is not None:
            facts["checkpoint"] = str(self.checkpoint.path)
            facts["step"] = self.checkpoint.position.step
            facts |= {"optimizer": self.optimizer, "without": sorted(self.without)}
        return facts

    def fill(self, model: DistributedModelParallel, optimizer: KeyedOptimizer, ranks: Ranks) -> None:
        """Puts it into a model that has its first values: every rank reads what its shards hold, and no more.

        All ranks call it. Raises CheckpointError or ContractError for files that have changed since they were checked.
        """
        if self.checkpoint is not None:
            take_over(self.checkpoint, model, optimizer if self.optimizer else None, self.without, ranks)
        together(ranks, lambda: self._fill_tables(pieces_of(model, None, ranks)))

    def _fill_tables(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            source = self.sources.get(table_name(piece.key) or "")
            if source is not None:
                _fill_piece(piece, source)


def _fill_piece(piece: Piece, source: TableSource) -> None:
    (first, column), (count, width) = piece.offset, piece.values.shape
    with torch.no_grad():
        for rows_N, values_ND in source.parts(first, first + count):
            piece.values[rows_N - first] = values_ND[:, column : column + width].to(piece.values)


def find_start(recipe: Recipe, data: Data, ranks: Ranks) -> Start | None:
    """What the recipe's section `start` names, read through and held against the model, before there is any of it.

    Returns: None where it names nothing. All ranks call it, and raise together: ConfigError for names that the model
    does not have, CheckpointError or ContractError for a checkpoint or file that is not sound or does not fit.
    """
    config = recipe.start
    if config.checkpoint is None and not config.tables:
        return None
    model = NewModel(recipe, data)
    together(ranks, lambda: _check_names(model, (*config.without, *config.tables)))
    sources = together(ranks, lambda: {name: _source(model, name, file) for name, file in config.tables.items()})
    without = frozenset((*config.without, *sources))
    checkpoint = None
    if config.checkpoint is not None:
        path = _path_of_first(config.checkpoint, ranks)
        checkpoint = together(ranks, lambda: _fitting(path, model, without))
        fault = fault_of(checkpoint.path, ranks)
        agree(ranks, None if fault is None else CheckpointError(fault))
    together(ranks, lambda: _check_share(sources, ranks))
    return Start(checkpoint, config.optimizer, without, sources)


def _path_of_first(source: Path, ranks: Ranks) -> Path:
    """The checkpoint that rank 0 finds: a run that still goes on may show every rank another newest one."""
    found = [together(ranks, lambda: open_checkpoint(source).path)]
    dist.broadcast_object_list(found, src=0, group=ranks.control)
    return found[0]


def _fitting(path: Path, model: NewModel, without: frozenset[str]) -> StoredCheckpoint:
    found = open_checkpoint(path)
    check_fit(found, model, model.recipe.start.optimizer, without)
    return found


def _check_names(model: NewModel, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in model.tables:
            close = get_close_matches(name, model.tables, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"start: expected tables among {', '.join(model.tables)}, got {name}{hint}")


def _source(model: NewModel, name: str, file: str) -> TableSource:
    """Raises ContractError where its rows are not as wide as the table's, or more."""
    if name == HID and model.managed:
        raise ConfigError(f"start.tables: expected tables whose rows stay with their ids, got {name}, which is managed")
    source = open_table(file, name)
    rows, width = model.tables[name]
    if source.width != width or source.rows > rows:
        expected = f"at most {rows:,} rows of width {width}, as the table {name} has"
        raise ContractError(source.where, expected, f"{source.rows:,} of width {source.width}")
    return source


def _check_share(sources: Mapping[str, TableSource], ranks: Ranks) -> None:
    """Every rank reads its share of every file's rows."""
    for source in sources.values():
        share = -(-source.rows // ranks.world)
        first, last = (min(rank * share, source.rows) for rank in (ranks.rank, ranks.rank + 1))
        hidden = None if ranks.first else True
        with tqdm(total=last - first, desc=f"check {source.where}", unit=" rows", delay=1, disable=hidden) as progress:
            check_values(source, first, last, progress.update)


def kept_facts(facts: Path) -> dict[str, object]:
    """What the run.json of a run that goes on said of its start, under "start"."""
    try:
        before = json.loads(facts.read_bytes())
    except (OSError, ValueError):
        return {}
    return {"start": before["start"]} if isinstance(before, dict) and "start" in before else {}
