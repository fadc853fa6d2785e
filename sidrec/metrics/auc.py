"""GAUC, UAUC and AUC by item slice as torchmetrics objects: for any training loop, under torchrun or alone.

Defined as in sidrec.metrics.exact, by the same code: a user's AUC is the share of (positive, negative) pairs of its
rows that are ranked right, ties count one half; GAUC weighs users by their rows (Zhu et al., KDD 2017), UAUC weighs
them equally; both are over users with both classes.

Every rank updates with its own rows, any number of them. `compute`, `estimates` and `get_metrics` are collective
in a process group: all ranks call them, also a rank without rows. All ranks get the result. `state_dict` holds
the rank's own rows: keep one per rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from sidrec.metrics.pairs import Estimate, Rows, checked_rows
from sidrec.metrics.slices import SliceLookup, Slices
from sidrec.metrics.streaming import Histograms, Window
from sidrec.schema import ContractError

ALL = "all"


class RankingMetric(Metric):
    """Base of the metrics. State is bounded, in one of two forms: `Window` or `Histograms`.

    process_group: the ranks that share the metric; None: all, or this process alone where no group exists.
    State and results live on the metric's device, which `.to(device)` sets and the group's backend must serve (nccl: a
    GPU). Rows come from any device; `update` checks their values, so on a GPU it waits for them.
    """

    full_state_update = True  # `forward` returns the batch's own value, which the state does not contain
    higher_is_better = True
    is_differentiable = False

    def __init__(
        self, form: Window | Histograms, slices: Slices | None = None, process_group: ProcessGroup | None = None
    ) -> None:
        # A cached result would let a rank without new rows skip the collective that the others wait in.
        super().__init__(process_group=process_group, compute_with_cache=False)
        self.form = form
        self.item_slices = SliceLookup(slices) if slices else None
        names = self.item_slices.names if self.item_slices else ()
        self._bits: dict[str, int | None] = {ALL: None, **{name: bit for bit, name in enumerate(names)}}
        with torch.inference_mode(False):
            for name, empty in form.state(len(self._bits)).items():
                self.add_state(name, empty, dist_reduce_fx=None, persistent=True)

    def reset(self) -> None:
        """Forgets all rows of this rank."""
        with torch.inference_mode(False):  # or updates outside inference mode would fail after a reset within it
            super().reset()

    def estimates(self) -> dict[str, Estimate]:
        """Each value with its errors, under "slice/metric": "all/gauc". Collective in a process group."""
        with self.sync_context(dist_sync_fn=gather_all_tensors):
            return self._estimates()

    def get_metrics(self) -> dict[str, Tensor]:
        """For torchrec's RecMetricModule, which shows its `state_metrics` among its own metrics. Collective."""
        value = self.compute()
        return dict(value) if isinstance(value, Mapping) else {type(self).__name__.lower(): value}

    def _checked(self, scores: Tensor, labels: Tensor, users: Tensor) -> Rows:
        return checked_rows(f"{type(self).__name__}.update", scores, labels, users, self.device)

    def _add(self, rows: Rows) -> None:
        self.form.add(self._state(), rows, list(self._bits.values()))

    def _state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._defaults}

    def _estimates(self) -> dict[str, Estimate]:
        counted = self.form.count(self._state(), list(self._bits.values()))
        return {
            f"{name}/{metric}": estimate
            for name, pairs in zip(self._bits, counted, strict=True)
            for metric, estimate in pairs.estimates().items()
        }

    def _value(self, estimate: Estimate) -> Tensor:
        return torch.tensor(estimate.value, dtype=torch.float64, device=self.device)

    def _sync_dist(self, dist_sync_fn: Callable = gather_all_tensors, process_group: Any | None = None) -> None:
        """Called by Metric.sync: merges the ranks' states as the form does."""
        for name, tensor in self.form.merged(self._state(), process_group or self.process_group).items():
            setattr(self, name, tensor)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Refuses an incomplete state or one of another size; copies it, because updates write in place."""
        missing = [name for name in self._defaults if prefix + name not in state_dict]
        missing_keys.extend(prefix + name for name in missing)
        for name, own in self._state().items():
            saved = state_dict.get(prefix + name, own)
            if saved.shape != own.shape:
                expected, got = list(own.shape), list(saved.shape)
                error_msgs.append(f"{prefix}{name}: expected shape {expected} for {self.form}, got {got}")
                missing.append(name)
        if missing:
            return
        for name, own in self._state().items():
            state_dict[prefix + name] = state_dict[prefix + name].to(own, copy=True)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._update_count = max(self._update_count, 1)  # else torchmetrics warns that there is nothing to compute


class Gauc(RankingMetric):
    """GAUC over all ranks' rows: users' AUCs weighted by their rows, over users with both classes.

    Example::

        gauc = Gauc(Window(rows=1_000_000))               # or Histograms()
        for batch in loader:
            logits = model(batch)
            gauc.update(logits, batch.label, batch.user)
        print(gauc.compute())                             # on every rank

    form: see `Window` and `Histograms`.
    """

    def __init__(self, form: Window | Histograms, process_group: ProcessGroup | None = None) -> None:
        super().__init__(form, process_group=process_group)

    def update(self, scores: Tensor, labels: Tensor, users: Tensor) -> None:
        """scores: floating, finite. labels: 0 or 1. users: integer ids. All [N] or [N, 1]; N may be 0.

        Raises ContractError, and takes in nothing, for any other input.
        """
        self._add(self._checked(scores, labels, users))

    def compute(self) -> Tensor:
        """float64 scalar; NaN where no user has both classes."""
        return self._value(self._estimates()[f"{ALL}/gauc"])


class Uauc(Gauc):
    """UAUC over all ranks' rows: plain mean of users' AUCs, over users with both classes. Otherwise like `Gauc`."""

    def compute(self) -> Tensor:
        """float64 scalar; NaN where no user has both classes."""
        return self._value(self._estimates()[f"{ALL}/uauc"])


class SlicedAuc(RankingMetric):
    """AUC, GAUC and UAUC, on all rows and on the rows of each slice of items, from one state.

    slices: at most 8, as sidrec.metrics.slices.slice_items makes them from ids and train impressions.
    Raises ContractError for slices that do not fit their items.
    """

    def __init__(self, form: Window | Histograms, slices: Slices, process_group: ProcessGroup | None = None) -> None:
        super().__init__(form, slices, process_group)

    def update(self, scores: Tensor, labels: Tensor, users: Tensor, items: Tensor) -> None:
        """Like Gauc.update. items: integer ids of the same rows; id 0, the unknown item, counts in slice "all" only.

        Raises ContractError, and takes in nothing, for an item that the slices do not list.
        """
        assert self.item_slices is not None, "the constructor asks for slices"
        rows, where = self._checked(scores, labels, users), f"{type(self).__name__}.update"
        slices_N = self.item_slices.look_up(where, items)
        if len(slices_N) != len(rows.score_N):
            raise ContractError(f"{where}, items", f"{len(rows.score_N)} rows, as many as scores", len(slices_N))
        self._add(replace(rows, slices_N=slices_N))

    def compute(self) -> dict[str, Tensor]:
        """ "slice/metric" -> float64 scalar, such as "tail/auc"; NaN where no group of rows has both classes."""
        return {name: self._value(estimate) for name, estimate in self._estimates().items()}
