"""Finds the value in a step that was not finite. Searched in this order, nearest to the cause first: the batch's table
rows, the layers' weights, logits, loss terms, gradients of tables, gradients of layers.

Shapes: B rows, U item bags, N bags (U or B), T history positions, D width, X columns.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from sidrec.data.batch import Batch
from sidrec.model.ranker import GradientBoundary, Ranker

NAMED = 5
"""Rows that a message lists before "and N more"."""


@dataclass(frozen=True)
class Cause:
    """A value that was not finite.

    order: smaller is nearer to the cause. what: text for a message. rows: this rank's offending rows of the split;
    empty if no row can be singled out. in_weights: weights are not finite, so skipping the batch does not help.
    loss: the largest loss if the rows were chosen by it, else 0.
    """

    order: int
    what: str
    rows: tuple[int, ...] = ()
    in_weights: bool = False
    loss: float = 0.0


@dataclass(frozen=True)
class TableLookup:
    """The embeddings that a table collection gives to a step.

    boundary: where they enter the layers. tables: the table's name by feature. of_rows: whether a bag belongs to a row
    of the batch, or to an item. managed: whether it is a managed-collision table, whose rows have no fixed ids.
    """

    boundary: GradientBoundary
    tables: Mapping[str, str]
    of_rows: bool = False
    managed: bool = False


def table_lookups(ranker: Ranker) -> list[TableLookup]:
    """The lookups of every table collection in a sharded ranker."""
    found = []
    if ranker.items is not None:
        found.append(TableLookup(ranker.items_boundary, _tables(ranker.items)))
    if ranker.managed_hids is not None:
        tables = _tables(ranker.managed_hids._embedding_module)
        found.append(TableLookup(ranker.managed_boundary, tables, managed=True))
    if ranker.context is not None:
        found.append(TableLookup(ranker.context_boundary, _tables(ranker.context), of_rows=True))
    return found


def _tables(collection: Any) -> dict[str, str]:
    return {name: table.name for table in collection._embedding_bag_configs for name in table.feature_names}


@dataclass(frozen=True)
class LookedUp:
    """A lookup's embeddings in a step and the gradient of their values, which the boundary itself forgets."""

    lookup: TableLookup
    embeddings: KeyedTensor
    gradient: Tensor


@dataclass(frozen=True)
class Values:
    """A rank's values of a step after backward to the embeddings, and its weights, which the step has not changed.

    columns: column names of the batch's float fields, by field. layers: parameters outside tables, by name.
    norms_K: of all gradients, those of the layers in `layer_names` first, then those of tables. The layers' gradients
    themselves lie in memory that the next step overwrites.
    """

    batch: Batch
    terms: Mapping[str, Tensor]
    logits_B: Tensor
    looked_up: list[LookedUp]
    layers: Mapping[str, Tensor]
    layer_names: list[str]
    norms_K: Tensor
    columns: Mapping[str, tuple[str, ...]]


@torch.no_grad()
def find_cause(step: Values) -> Cause | None:
    """This rank's cause, the nearest one found; None if all its values are finite."""
    checks = (
        _bad_table_rows,
        _bad_weights,
        _bad_logits,
        _bad_terms,
        _bad_table_gradients,
        _bad_layer_gradients,
    )
    for check in checks:
        for cause in check(step):
            return cause
    return None


def _bad_table_rows(step: Values) -> Iterator[Cause]:
    for found in step.looked_up:
        for feature, bad_N in _bad_bags(found, found.embeddings.values()):
            what = f"weights of {_rows_of_table(found.lookup, feature, bad_N, step.batch)} that are not finite"
            yield Cause(0, what, _rows_with(found.lookup, bad_N, step.batch), in_weights=True)


def _bad_weights(step: Values) -> Iterator[Cause]:
    for name, weight in step.layers.items():
        if not torch.isfinite(weight).all():
            yield Cause(1, f"weights of the layer {name} that are not finite", in_weights=True)


def _bad_logits(step: Values) -> Iterator[Cause]:
    bad_B = ~torch.isfinite(step.logits_B) & (step.batch.weight_B > 0)
    if bad_B.any():
        what = f"a logit of {step.logits_B[bad_B][0].item()}{_largest_input(step, bad_B)}{_largest_weight(step)}"
        yield Cause(2, what, _numbers(step.batch.row_B[bad_B]))


def _bad_terms(step: Values) -> Iterator[Cause]:
    for name, term in reversed(list(step.terms.items())):  # "loss", the sum of all, comes first
        if not torch.isfinite(term):
            yield Cause(3, f"a term {name} of {term.item()}{_largest_weight(step)}")


def _bad_table_gradients(step: Values) -> Iterator[Cause]:
    for found in step.looked_up:
        for feature, bad_N in _bad_bags(found, found.gradient.square()):
            yield _gradient_cause(step, 4, _rows_of_table(found.lookup, feature, bad_N, step.batch))


def _bad_layer_gradients(step: Values) -> Iterator[Cause]:
    for name, norm in zip(step.layer_names, step.norms_K.tolist(), strict=False):
        if not math.isfinite(norm):
            yield _gradient_cause(step, 5, f"the layer {name}")


def _gradient_cause(step: Values, order: int, of: str) -> Cause:
    """A gradient sums over all rows; the row with the largest loss is the likeliest cause."""
    loss_B = functional.binary_cross_entropy_with_logits(step.logits_B, step.batch.label_B, reduction="none")
    real_B = step.batch.weight_B > 0
    what = f"a gradient of {of} that is not finite when squared"
    if not real_B.any():
        return Cause(order, what)
    loss = float(loss_B[real_B].amax())
    worst_B = real_B & (loss_B == loss)
    what += f"; largest loss: {loss:.3g}{_largest_input(step, worst_B)}{_largest_weight(step)}"
    return Cause(order, what, _numbers(step.batch.row_B[worst_B]), loss=loss)


def _bad_bags(found: LookedUp, values_NF: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The lookup's features with values that are not finite, and in which bags."""
    parts = torch.split(values_NF, found.embeddings.length_per_key(), dim=1)
    for feature, values_ND in zip(found.embeddings.keys(), parts, strict=True):
        bad_N = ~torch.isfinite(values_ND).all(dim=1)
        if bad_N.any():
            yield feature, bad_N


def _rows_of_table(lookup: TableLookup, feature: str, bad_N: Tensor, batch: Batch) -> str:
    """The feature's table and its rows (ids, if managed) in the bad bags, for a message."""
    bags = _lookups(lookup, batch)[feature]
    rows = _numbers(bags.values()[torch.repeat_interleave(bad_N, bags.lengths())])
    named = ", ".join(map(str, rows[:NAMED])) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")
    return f"{'ids' if lookup.managed else 'rows'} {named} of the table {lookup.tables.get(feature, feature)}"


def _lookups(lookup: TableLookup, batch: Batch) -> KeyedJaggedTensor:
    return batch.context if lookup.of_rows else batch.items


def _rows_with(lookup: TableLookup, bad_N: Tensor, batch: Batch) -> tuple[int, ...]:
    """The rows whose target, history or context is in a bad bag."""
    bad_B = bad_N if lookup.of_rows else bad_N[batch.target_B] | bad_N[batch.history_BT].any(dim=1)
    return _numbers(batch.row_B[bad_B & (batch.weight_B > 0)])


def _largest_input(step: Values, bad_B: Tensor) -> str:
    found = []
    for field, names in step.columns.items():
        values_X = getattr(step.batch, field)[bad_B].abs().amax(dim=0)
        found += [(value, name) for value, name in zip(values_X.tolist(), names, strict=True)]
    return f"; largest input: {max(found)[1]} = {max(found)[0]:.3g}" if found else ""


def _largest_weight(step: Values) -> str:
    name, weight = max(step.layers.items(), key=lambda layer: float(layer[1].abs().amax()))
    return f"; largest weight: {float(weight.abs().amax()):.3g}, in {name}"


def _numbers(values: Tensor) -> tuple[int, ...]:
    return tuple(sorted(set(values.tolist())))


def nearest_cause(causes: Iterable[Cause | None]) -> Cause | None:
    """The nearest cause of all ranks, with the rows of every rank whose cause is as near. causes: one per rank."""
    found = sorted((cause for cause in causes if cause), key=_nearness)
    if not found:
        return None
    rows = {row for cause in found if _nearness(cause) == _nearness(found[0]) for row in cause.rows}
    return replace(found[0], rows=tuple(sorted(rows)))


def _nearness(cause: Cause) -> tuple[int, float]:
    return cause.order, -cause.loss
