"""Whether a checkpoint is one of this model and its optimizer, said in one sentence before anything is loaded."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from sidrec.checkpoint.index import CheckpointIndex
from sidrec.checkpoint.piece import NAMES, CheckpointError, Piece
from sidrec.checkpoint.piece_names import MODEL, OPTIMIZER, ROW_SUM, SUM, is_table, parameter_of, table_of
from sidrec.checkpoint.weights import Weight, dtype_of, shape_of

TABLE_OPTIMIZERS = {frozenset({SUM}): "adagrad", frozenset({ROW_SUM}): "rowwise_adagrad", frozenset[str](): "sgd"}
LAYER_OPTIMIZERS = {
    frozenset({"step", "exp_avg", "exp_avg_sq"}): "adam or adamw",
    frozenset({"step", "sum"}): "adagrad",
    frozenset[str](): "none",
}
"""The optimizers of a recipe by the states that they keep of a table, and of a layer."""


def check_model(path: Path, index: CheckpointIndex, state: Mapping[str, Weight]) -> None:
    """Raises CheckpointError unless the checkpoint `path` has the tables and layers of a state_dict, and no others."""
    names = {key.removeprefix(f"{MODEL}/") for key in index.tensors if key.startswith(f"{MODEL}/")}
    for name, value in state.items():
        if name not in names:
            raise CheckpointError(f"{path}: expected the {_named(name)} of this recipe, got a checkpoint without it")
        stored = index.tensors[f"{MODEL}/{name}"]
        expected, dtype = shape_of(value), NAMES[dtype_of(value)]
        if len(expected) != len(stored.shape) or dtype != stored.dtype:
            raise CheckpointError(
                f"{path}: {_named(name)}: expected {dtype} {list(expected)} as this recipe has, "
                f"the checkpoint's is {stored.dtype} {list(stored.shape)}"
            )
        if expected != stored.shape:
            raise CheckpointError(f"{path}: {_named(name)}: {_other_shape(name, expected, stored.shape)}")
    others = sorted(names - state.keys())
    if others:
        raise CheckpointError(
            f"{path}: expected the tables and layers of this recipe alone, got the {_named(others[0])} beside them"
        )


def _other_shape(name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    if not is_table(name):
        return f"expected shape {list(expected)} as this recipe has, the checkpoint's has {list(found)}"
    if expected[1] != found[1]:
        return f"expected width {expected[1]} as this recipe has, the checkpoint's has {found[1]}"
    return f"expected {expected[0]} rows as this recipe's data have, the checkpoint's has {found[0]}"


def check_optimizer(path: Path, index: CheckpointIndex, parameters: Iterable[str], pieces: Iterable[Piece]) -> None:
    """Raises CheckpointError unless the checkpoint `path` keeps of each parameter what this rank's optimizer keeps.

    parameters: names of what the optimizer updates on this rank. pieces: of its states.
    """
    stored = _states(index.tensors)
    kept = _states(piece.key for piece in pieces)
    for name in parameters:
        expected, found = kept.get(name, frozenset()), stored.get(name, frozenset())
        if expected != found:
            kinds = TABLE_OPTIMIZERS if is_table(name) else LAYER_OPTIMIZERS
            raise CheckpointError(
                f"{path}: {_named(name)}: expected the optimizer {_kind(kinds, expected)} as this recipe has, "
                f"the checkpoint's is {_kind(kinds, found)}"
            )


def _states(keys: Iterable[str]) -> dict[str, frozenset[str]]:
    """What is kept of each parameter."""
    states: dict[str, set[str]] = {}
    for key in keys:
        if key.startswith(f"{OPTIMIZER}/"):
            states.setdefault(parameter_of(key), set()).add(key.rpartition("/")[2])
    return {name: frozenset(found) for name, found in states.items()}


def _kind(kinds: Mapping[frozenset[str], str], states: frozenset[str]) -> str:
    return kinds.get(states, f"one that keeps {', '.join(sorted(states))}")


def _named(name: str) -> str:
    return f"table {table_of(name)}" if is_table(name) else f"layer {name}"
