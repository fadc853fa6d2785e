"""Backward in two halves: as far as the embeddings, and, once all ranks know that it is sound, into the tables.

FBGEMM updates tables inside their backward. Between the halves nothing is updated yet, so a step can still be left out
whole: no row of a table, no layer, no optimizer's state changes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from sidrec.model.ranker import Ranker


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
