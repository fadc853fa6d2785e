"""Training state besides model and optimizer: position.json, best.json, and every rank's random generators.

position.json also says what data was trained on, and data is checked against it here.
"""

import json
import random
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor

from sidrec.checkpoint.dcp_storage import load_shards
from sidrec.checkpoint.tensor_shard import RANKS, TensorShard, read_index, whole_tensor
from sidrec.errors import CheckpointError
from sidrec.id_maps import IdMaps
from sidrec.parallel.process_group import Ranks, run_on_all_ranks
from sidrec.schema import Manifest, MapDigest, Transform

if TYPE_CHECKING:  # reading a checkpoint must not import TorchRec
    from sidrec.data.dataset import Dataset

POSITION = "position.json"
VERSION = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Best:
    """The best value of `metric` on `split` so far, and the step at which it was measured."""

    split: str
    metric: str
    value: float
    step: int


@dataclass(frozen=True)
class Inputs:
    """The columns of the log that the model reads as numbers, in order, and how dense ones were made of raw numbers.

    lists: those of its categories that have several values in a row.
    """

    dense: tuple[str, ...]
    stats: tuple[str, ...]
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    lists: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest, dense: tuple[str, ...], categories: Collection[str]) -> "Inputs":
        """Of a log of which the model reads these dense columns and categories."""
        transforms = {column: manifest.transforms[column] for column in dense if column in manifest.transforms}
        lists = tuple(column for column in manifest.lists if column in categories)
        return cls(dense, manifest.stats, transforms, lists)


@dataclass(frozen=True)
class Position:
    """The position of a training: `step` steps done, of which `epoch_step` in epoch `epoch`.

    catalog: fingerprint of the catalog. lr_factor: factor on the learning rates in the last step.
    terms: the loss and its parts by name; for every rank, the sum over the `term_steps` steps since the last report.
    best: None if no best checkpoint is kept or none was measured yet. measured: the last step that was evaluated, or 0.
    ranks, versions: number of ranks and software versions that wrote it.
    id_maps: of the log that it is trained on, empty if it has none. inputs: its columns of numbers; None if an earlier
    version wrote the checkpoint.
    """

    step: NonNegativeInt
    epoch: NonNegativeInt
    epoch_step: NonNegativeInt
    catalog: str | None
    lr_factor: float = 1.0
    terms: Mapping[str, Annotated[tuple[float, ...], Field(min_length=1)]] = field(default_factory=dict)
    term_steps: NonNegativeInt = 0
    best: Best | None = None
    measured: NonNegativeInt = 0
    ranks: PositiveInt = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    version: int = VERSION
    id_maps: Mapping[str, MapDigest] = field(default_factory=dict)
    inputs: Inputs | None = None


_POSITION: TypeAdapter[Position] = TypeAdapter(Position)
_BEST: TypeAdapter[Best] = TypeAdapter(Best)


def position_text(position: Position) -> str:
    """The content of position.json."""
    return json.dumps(asdict(position), indent=1) + "\n"


def read_position(path: Path) -> Position:
    """Reads position.json of the checkpoint `path`. Raises CheckpointError if it is missing or invalid."""
    position = _read(path / POSITION, _POSITION, "the position of a training")
    if position.version != VERSION:
        raise CheckpointError(f"{path / POSITION}: expected a position of version {VERSION}, got {position.version}")
    return position


def best_text(best: Best) -> str:
    """The content of best.json."""
    return json.dumps(asdict(best), indent=1) + "\n"


def read_best(path: Path) -> Best:
    """Reads the best.json `path`. Raises CheckpointError if it is missing or invalid."""
    return _read(path, _BEST, "the record of a best checkpoint")


def _read(path: Path, kind: TypeAdapter[T], what: str) -> T:
    try:
        return kind.validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: expected {what}, got {error.strerror}") from None
    except ValidationError as error:
        mistakes = ", ".join(".".join(map(str, (*found["loc"], found["msg"]))) for found in error.errors())
        raise CheckpointError(f"{path}: expected {what}, got {mistakes}") from None


# Whether data means to a checkpoint what its own data meant. Ids and codes are row numbers of tables, and layers know
# columns by their place alone: other data of the same shape would be scored without an error, and wrongly.


def check_catalog(path: Path, position: Position, catalog: str | None) -> None:
    """Raises CheckpointError if the checkpoint `path` was trained with another catalog. catalog: its fingerprint."""
    if position.catalog != catalog:
        raise CheckpointError(f"{path}: expected the catalog {position.catalog} it was trained with, got {catalog}")


def check_own_data(path: Path, position: Position, data: "Dataset", inputs: Inputs) -> None:
    """Raises CheckpointError unless the data is that which the checkpoint `path` was trained on: same ids and columns.

    Id maps are compared only where both have them.
    """
    for column, known in position.id_maps.items():
        found = data.manifest.id_maps.get(column)
        if found is not None and found != known:
            trained, now = IdMaps(position.id_maps).fingerprint, IdMaps(data.manifest.id_maps).fingerprint
            raise CheckpointError(
                f"{path}: expected the {known.ids:,} ids of {column} it was trained with (id maps {trained}), got "
                f"{found.ids:,} others (id maps {now}); `sidrec evaluate --data` scores data with more ids, and "
                "start.checkpoint trains on it"
            )
    check_inputs(path, position, inputs)


def check_inputs(path: Path, position: Position, inputs: Inputs) -> None:
    """Raises CheckpointError if the columns that the layers read are others, in another order or of another scale."""
    trained = position.inputs
    if trained is None:
        return
    for kind, before, now in (
        ("dense", trained.dense, inputs.dense),
        ("statistics", trained.stats, inputs.stats),
        ("list", trained.lists, inputs.lists),
    ):
        if before != now:
            raise CheckpointError(
                f"{path}: expected the {kind} columns it was trained with, {', '.join(before) or 'none'}, got "
                f"{', '.join(now) or 'none'}"
            )
    for column, transform in trained.transforms.items():
        found = inputs.transforms.get(column)
        scale = None if found is None else (found.mean, found.deviation)
        if scale != (transform.mean, transform.deviation):
            got = "none" if scale is None else f"mean {scale[0]:g} and deviation {scale[1]:g}"
            raise CheckpointError(
                f"{path}: expected {column} with the mean {transform.mean:g} and deviation {transform.deviation:g} it "
                f"was trained with, got {got}; prepare the data with --ids and the data folder of the run"
            )


def trained_sid_rows(
    path: Path, position: Position, data: "Dataset", without: Collection[str] = (), remedy: str = ""
) -> Mapping[str, int]:
    """SID table -> its rows when the checkpoint was trained; the first rows of this data's tables.

    without: tables that take nothing from the checkpoint. remedy: appended to the message. Raises CheckpointError if
    the data's catalog is neither the checkpoint's nor extended from it: its codes are other rows.
    """
    if position.catalog is not None and position.catalog in data.sid_rows:
        return data.sid_rows[position.catalog]
    if all(table in without for table in data.tables.sid_tables):
        return {}
    raise CheckpointError(
        f"{path}: expected the catalog {position.catalog} it was trained with, or one that `sidrec fit --extend` made "
        f"from it, got {data.fingerprint}, whose codes are other rows{remedy}"
    )


def check_rows(path: Path, trained: Mapping[str, int], sid_rows: Mapping[str, int]) -> None:
    """Raises CheckpointError if this data numbers the codes of the checkpoint's catalog differently.

    trained: table -> rows of the checkpoint. sid_rows: from `trained_sid_rows`. A log with other items of the same
    catalog has other codes, and so other rows.
    """
    for table, rows in sid_rows.items():
        if trained.get(table) != rows:
            raise CheckpointError(
                f"{path}: expected {trained.get(table, 0):,} rows of {table}, got {rows:,}: this log has other items "
                "of the catalog than the log it was trained on"
            )


# Random generators, as tensors: torch's on CPU and GPU, numpy's and Python's.


def random_state_shards(ranks: Ranks) -> list[TensorShard]:
    """The states of this rank's generators as shards ranks/RANK/random/NAME."""
    return [whole_tensor(f"{RANKS}/{ranks.rank}/random/{name}", state) for name, state in _states(ranks.device).items()]


def restore_random_state(path: Path, step: int, seed: int, ranks: Ranks) -> None:
    """Restores the generators from the checkpoint `path`. Every rank calls it.

    If another number of ranks or another kind of device wrote it, every rank seeds its generators from (seed, step,
    rank). Raises CheckpointError as `load_shards` does.
    """
    shards = random_state_shards(ranks)
    index = run_on_all_ranks(ranks, lambda: read_index(path))
    stored = {key for key in index.tensors if "/random/" in key}
    states = {shard.key.rsplit("/", 1)[1]: shard.values for shard in shards}
    if stored == {f"{RANKS}/{rank}/random/{name}" for rank in range(ranks.world) for name in states}:
        load_shards(path, index, shards, ranks.control)
        _restore(states, ranks.device)
    else:
        _seed_generators(seed, step, ranks.rank)


def _seed_generators(seed: int, step: int, rank: int) -> None:
    torch_seed, numpy_seed, python_seed = map(int, np.random.SeedSequence((seed, step, rank)).generate_state(3))
    torch.manual_seed(torch_seed)
    np.random.seed(numpy_seed)
    random.seed(python_seed)


def _states(device: torch.device) -> dict[str, Tensor]:
    numpy = np.random.get_state(legacy=False)
    _, words, python_gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": _packed(
            (*numpy["state"]["key"].tolist(), numpy["state"]["pos"]), numpy["gauss"] if numpy["has_gauss"] else None
        ),
        "python": _packed(words, python_gauss),
    }
    return states if device.type == "cpu" else {**states, "cuda": torch.cuda.get_rng_state(device)}


def _restore(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    words, gauss = _unpacked(states["numpy"])
    keys = np.array(words[:-1], dtype=np.uint32)
    np.random.set_state(("MT19937", keys, words[-1], int(gauss is not None), gauss or 0.0))
    words, gauss = _unpacked(states["python"])
    random.setstate((3, tuple(words), gauss))
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _packed(words: tuple[int, ...], gauss: float | None) -> Tensor:
    """int64: the generator's words; whether it caches a second normal number, and the bits of that number."""
    bits = int(np.float64(gauss or 0.0).view(np.int64))
    return torch.tensor([*words, int(gauss is not None), bits], dtype=torch.int64)


def _unpacked(packed: Tensor) -> tuple[list[int], float | None]:
    *words, has_gauss, bits = packed.tolist()
    return words, float(np.int64(bits).view(np.float64)) if has_gauss else None
