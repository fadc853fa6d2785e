"""What was not finite in a step: the first of a table's rows, a layer's weights, a row's logit, a term, a gradient.

Shapes: B rows, U item bags, N bags (U or B), T history positions, D width, X columns.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from sidrec.data.batch import Batch
from sidrec.model.ranker import Ranker

NAMED = 5
"""Rows of a table, or of a file, that a sentence names."""


@dataclass(frozen=True)
class Finding:
    """order: the smaller, the nearer to the cause. what: in words. rows: of the split, this rank's; empty where none
    can be told apart from the others. in_weights: whether leaving the batch out would not help. loss: the rows', where
    they are but the likeliest."""

    order: int
    what: str
    rows: tuple[int, ...] = ()
    in_weights: bool = False
    loss: float = 0.0


# Backward in two halves: as far as the embeddings, and, once all ranks know that it is sound, into the tables.
#
# FBGEMM updates tables inside their backward. Between the halves nothing is updated yet, so a step can still be left
# out whole: no row of a table, no layer, no optimizer's state changes.


class Cut:
    """Where a table collection's embeddings enter the layers.

    of_rows: whether its bags are the batch's rows, or its items. managed: whether its tables deal rows to ids.
    tables: the table's name by feature. source: the embeddings as the tables gave them. leaf: their values as the
    layers got them, whose gradient waits there.
    """

    def __init__(self, collection: nn.Module, *, of_rows: bool = False, managed: bool = False) -> None:
        self.of_rows, self.managed = of_rows, managed
        tables: Any = collection._embedding_module if managed else collection
        self.tables = {name: table.name for table in tables._embedding_bag_configs for name in table.feature_names}
        self.source: KeyedTensor | None = None
        self.leaf: Tensor | None = None
        self._hook = collection.register_forward_hook(self._cut)

    def _cut(self, _: nn.Module, __: object, output: Any) -> Any:
        if not torch.is_grad_enabled():
            return output
        first, *rest = output if isinstance(output, tuple) else (output,)
        self.source = source = first.wait() if hasattr(first, "wait") else first
        self.leaf = source.values().detach().requires_grad_()
        cut = KeyedTensor(source.keys(), source.length_per_key(), self.leaf)
        return (cut, *rest) if isinstance(output, tuple) else cut

    def gradient(self) -> Tensor:
        """Of the embeddings' values; zero where the loss does not depend on them."""
        assert self.leaf is not None, "backward follows forward"
        return torch.zeros_like(self.leaf) if self.leaf.grad is None else self.leaf.grad

    def remove(self) -> None:
        """Lets the collection be as it was."""
        self._hook.remove()


@dataclass(frozen=True)
class Step:
    """What a rank knows of its step between the halves of backward.

    columns: names of a number field's columns, by field of the batch. layers: parameters that are no tables, by name.
    """

    batch: Batch
    terms: Mapping[str, Tensor]
    logits_B: Tensor
    cuts: list[Cut]
    layers: Mapping[str, Tensor]
    columns: Mapping[str, tuple[str, ...]]


@torch.no_grad()
def find_cause(step: Step) -> Finding | None:
    """The nearest to the cause that this rank can see; None where it sees nothing."""
    for causes in (_table_rows, _weights, _logits, _terms, _table_gradients, _layer_gradients):
        for finding in causes(step):
            return finding
    return None


def _table_rows(step: Step) -> Iterator[Finding]:
    for cut in step.cuts:
        assert cut.source is not None, "the step has had its forward pass"
        for feature, bad_N in _bad_bags(cut, cut.source.values()):
            what = f"weights of {_rows_of_table(cut, feature, bad_N, step.batch)} that are not finite"
            yield Finding(0, what, _rows_with(cut, bad_N, step.batch), in_weights=True)


def _weights(step: Step) -> Iterator[Finding]:
    for name, weight in step.layers.items():
        if not torch.isfinite(weight).all():
            yield Finding(1, f"weights of the layer {name} that are not finite", in_weights=True)


def _logits(step: Step) -> Iterator[Finding]:
    bad_B = ~torch.isfinite(step.logits_B) & (step.batch.weight_B > 0)
    if bad_B.any():
        what = f"a logit of {step.logits_B[bad_B][0].item()}{_largest_input(step, bad_B)}{_largest_weight(step)}"
        yield Finding(2, what, _numbers(step.batch.row_B[bad_B]))


def _terms(step: Step) -> Iterator[Finding]:
    for name, term in reversed(list(step.terms.items())):  # "loss", the sum of all, comes first
        if not torch.isfinite(term):
            yield Finding(3, f"a term {name} of {term.item()}{_largest_weight(step)}")


def _table_gradients(step: Step) -> Iterator[Finding]:
    for cut in step.cuts:
        for feature, bad_N in _bad_bags(cut, cut.gradient().square()):
            yield _of_gradient(step, 4, _rows_of_table(cut, feature, bad_N, step.batch))


def _layer_gradients(step: Step) -> Iterator[Finding]:
    for name, weight in step.layers.items():
        if weight.grad is not None and not torch.isfinite(weight.grad.square().sum()):
            yield _of_gradient(step, 5, f"the layer {name}")


def _of_gradient(step: Step, order: int, of: str) -> Finding:
    """A gradient belongs to all rows; the one with the largest loss is likely to have spoilt it."""
    loss_B = functional.binary_cross_entropy_with_logits(step.logits_B, step.batch.label_B, reduction="none")
    real_B = step.batch.weight_B > 0
    what = f"a gradient of {of} that is not finite when squared"
    if not real_B.any():
        return Finding(order, what)
    loss = float(loss_B[real_B].amax())
    worst_B = real_B & (loss_B == loss)
    what += f"; largest loss: {loss:.3g}{_largest_input(step, worst_B)}{_largest_weight(step)}"
    return Finding(order, what, _numbers(step.batch.row_B[worst_B]), loss=loss)


def _bad_bags(cut: Cut, values_NF: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The cut's features with values that are not finite, and in which bags."""
    assert cut.source is not None, "the step has had its forward pass"
    parts = torch.split(values_NF, cut.source.length_per_key(), dim=1)
    for feature, values_ND in zip(cut.source.keys(), parts, strict=True):
        bad_N = ~torch.isfinite(values_ND).all(dim=1)
        if bad_N.any():
            yield feature, bad_N


def _rows_of_table(cut: Cut, feature: str, bad_N: Tensor, batch: Batch) -> str:
    """The table that the feature is looked up in, and those of its rows that bags hold; of a managed one their ids."""
    bags = _lookups(cut, batch)[feature]
    held_N = bad_N & (bags.lengths() > 0)
    rows = _numbers(bags.values()[bags.offsets()[:-1][held_N]])
    named = ", ".join(map(str, rows[:NAMED])) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")
    return f"{'ids' if cut.managed else 'rows'} {named} of the table {cut.tables.get(feature, feature)}"


def _lookups(cut: Cut, batch: Batch) -> KeyedJaggedTensor:
    return batch.context if cut.of_rows else batch.items


def _rows_with(cut: Cut, bad_N: Tensor, batch: Batch) -> tuple[int, ...]:
    """The rows whose target, history or context is in a bad bag."""
    bad_B = bad_N if cut.of_rows else bad_N[batch.target_B] | bad_N[batch.history_BT].any(dim=1)
    return _numbers(batch.row_B[bad_B & (batch.weight_B > 0)])


def _largest_input(step: Step, bad_B: Tensor) -> str:
    found = []
    for field, names in step.columns.items():
        values_X = getattr(step.batch, field)[bad_B].abs().amax(dim=0)
        found += [(value, name) for value, name in zip(values_X.tolist(), names, strict=True)]
    return f"; largest input: {max(found)[1]} = {max(found)[0]:.3g}" if found else ""


def _largest_weight(step: Step) -> str:
    name, weight = max(step.layers.items(), key=lambda layer: float(layer[1].abs().amax()))
    return f"; largest weight: {float(weight.abs().amax()):.3g}, in {name}"


def _numbers(values: Tensor) -> tuple[int, ...]:
    return tuple(sorted(set(values.tolist())))


def joined(findings: Iterable[Finding | None]) -> Finding | None:
    """One finding of all ranks': the nearest to the cause, with the rows of all ranks that found something as near."""
    found = sorted((finding for finding in findings if finding), key=_nearness)
    if not found:
        return None
    rows = {row for finding in found if _nearness(finding) == _nearness(found[0]) for row in finding.rows}
    return replace(found[0], rows=tuple(sorted(rows)))


def _nearness(finding: Finding) -> tuple[int, float]:
    return finding.order, -finding.loss


def cuts_of(ranker: Ranker) -> list[Cut]:
    """A cut at every table collection of a sharded ranker."""
    cuts = [Cut(ranker.items)] if ranker.items is not None else []
    cuts += [Cut(ranker.managed_hids, managed=True)] if ranker.managed_hids is not None else []
    return cuts + ([Cut(ranker.context, of_rows=True)] if ranker.context is not None else [])


def into_tables(cuts: list[Cut], *, zero: bool) -> None:
    """The second half. zero: with gradients of zero, which change no table, but are exchanged by the ranks as ever."""
    sources = [cut.source.values() for cut in cuts if cut.source is not None]
    gradients = [cut.gradient() for cut in cuts]
    torch.autograd.backward(sources, [torch.zeros_like(g) for g in gradients] if zero else gradients)
    for cut in cuts:
        cut.source = cut.leaf = None
