"""position.json: where in the log and in its schedule a checkpoint stands, and what it was made with."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from sidrec.checkpoint.piece import CheckpointError

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
class Position:
    """Where training stands: `step` steps done, `epoch_step` of them in epoch `epoch`; and with which catalog.

    lr_factor: on the learning rates of the last step.
    terms: the loss and its parts by name, on every rank the sum over the `term_steps` steps since the last report.
    best: None where none is chosen, or none was measured yet. measured: the last step at which one was measured, or 0.
    ranks, versions: what wrote it, software by name.
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


_POSITION: TypeAdapter[Position] = TypeAdapter(Position)
_BEST: TypeAdapter[Best] = TypeAdapter(Best)


def position_text(position: Position) -> str:
    """The content of position.json."""
    return json.dumps(asdict(position), indent=1) + "\n"


def read_position(path: Path) -> Position:
    """The position of the checkpoint in the folder `path`. Raises CheckpointError where it has none that is whole."""
    position = _read(path / POSITION, _POSITION)
    if position.version != VERSION:
        raise CheckpointError(f"{path / POSITION}: expected a position of version {VERSION}, got {position.version}")
    return position


def best_text(best: Best) -> str:
    """The content of best.json."""
    return json.dumps(asdict(best), indent=1) + "\n"


def read_best(path: Path) -> Best:
    """Reads best.json at `path`. Raises CheckpointError where there is none."""
    return _read(path, _BEST)


def check_catalog(path: Path, position: Position, catalog: str | None) -> None:
    """Raises CheckpointError where the checkpoint in `path` was trained with another catalog; catalog: fingerprint."""
    if position.catalog != catalog:
        raise CheckpointError(f"{path}: expected the catalog {position.catalog} it was trained with, got {catalog}")


def _read(path: Path, kind: TypeAdapter[T]) -> T:
    try:
        return kind.validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: expected JSON that says where training stands, got {error.strerror}") from None
    except ValidationError as error:
        mistakes = ", ".join(".".join(map(str, (*found["loc"], found["msg"]))) for found in error.errors())
        raise CheckpointError(f"{path}: expected JSON that says where training stands, got {mistakes}") from None
