"""Optimizers: FBGEMM updates tables inside backward, torch everything else, both on one schedule.

Tables that the plan replicates (data_parallel) have ordinary gradients, which FBGEMM's fused optimizer does not see.
They get torch's optimizer of the same kind and rate, so that the plan does not change how a table learns. A rank that
holds no rows of a table has an empty tensor in its place, which is not updated.

Shapes: N rows of a table, D its width.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper

from sidrec.config.recipe import (
    AdagradTables,
    DenseOptimizer,
    OptimizerConfig,
    RowwiseAdagradTables,
    Schedule,
    SgdTables,
    TableOptimizer,
)
from sidrec.data.item_tables import HID

Factory = Callable[[list[Tensor]], Optimizer]


def build_optimizer(
    model: DistributedModelParallel, config: OptimizerConfig, dim: int, *, by_flag: bool = False
) -> "ScheduledOptimizer":
    """One optimizer over the whole sharded model. dim: width of the tables.

    by_flag: whether a flag on the device can make it skip a step (`ScheduledOptimizer.step_unless`). torch's optimizers
    are then its fused kernels, whose results differ in the last bits.
    """
    fused = model.fused_optimizer
    others = {name: p for name, p in model.named_parameters() if name not in fused.params}
    dense = {name: p for name, p in others.items() if ".embedding_bags." not in name}
    tables = {name: p for name, p in others.items() if name not in dense and p.numel()}
    parts: list[tuple[str, KeyedOptimizer]] = [("", fused)]
    own = {name: p for name, p in tables.items() if config.hid and name.endswith(f".embedding_bags.{HID}.weight")}
    shared = {name: p for name, p in tables.items() if name not in own}
    for params, optimizer in ((shared, config.tables), (own, config.hid)):
        if params and optimizer:
            parts.append(("", KeyedOptimizerWrapper(params, _replicated(optimizer, dim, by_flag))))
    if dense:
        parts.append(("", KeyedOptimizerWrapper(dense, _dense(config.dense, by_flag))))
    return ScheduledOptimizer(parts, fused)


def _dense(config: DenseOptimizer, by_flag: bool) -> Factory:
    kinds: Mapping[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad}
    values = {"lr": config.lr, "weight_decay": config.weight_decay, **_kernels(by_flag or config.fused)}
    return lambda params: kinds[config.kind](params, **values)


def _replicated(config: TableOptimizer, dim: int, by_flag: bool) -> Factory:
    """torch's counterpart of the fused table optimizer."""
    match config:
        case AdagradTables():
            values = {"lr": config.lr, "eps": config.eps, **_kernels(by_flag)}
            return lambda params: torch.optim.Adagrad(params, **values)
        case RowwiseAdagradTables():
            return lambda params: FlatRowwiseAdagrad(params, dim, config.lr, config.eps)
        case SgdTables():
            return lambda params: torch.optim.SGD(params, lr=config.lr, **_kernels(by_flag))


def _kernels(by_flag: bool) -> dict[str, Any]:
    """torch's arguments for its fused kernels, the only ones that read `found_inf`."""
    return {"fused": True} if by_flag else {}


class ScheduledOptimizer(CombinedOptimizer):
    """The optimizers of tables and layers, with one factor on every learning rate."""

    def __init__(self, parts: list[tuple[str, KeyedOptimizer]], fused: KeyedOptimizer) -> None:
        super().__init__(parts)
        self.fused = fused
        self.base = [group["lr"] for _, part in parts for group in part.param_groups]

    def step_unless(self, bad: Tensor | bool) -> None:
        """Updates the parameters; if `bad`, changes no parameter and no state.

        bad: a float32 scalar, 0 or 1, on the device of the parameters, which is not read on the host and for which the
        optimizer was built (`by_flag`); or a bool.
        """
        if isinstance(bad, Tensor):
            for _, part in self._optims:
                if part is not self.fused:
                    part._optimizer.found_inf = bad  # as torch.amp.GradScaler does
        elif bad:
            self.zero_grad(set_to_none=True)  # parameters without a gradient are not updated
        self.step()

    def set_factor(self, factor: float) -> None:
        """Scales every learning rate, from the next backward on.

        A step of the fused optimizer only copies its rate into FBGEMM's kernels.
        """
        groups = [group for _, part in self._optims for group in part.param_groups]
        for group, lr in zip(groups, self.base, strict=True):
            group["lr"] = lr * factor
        self.fused.step()


def schedule_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Factor on the learning rates at `step` of `steps` (both counted over the whole run)."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return 1.0
    done = (step - schedule.warmup_steps) / max(1, steps - 1 - schedule.warmup_steps)
    if schedule.kind == "linear":
        return 1 + (schedule.final - 1) * done
    return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2


class FlatRowwiseAdagrad(Optimizer):
    """Row-wise Adagrad for replicated tables, equal to FBGEMM's fused kernel.

    s_row += mean(g_row^2); w_row -= lr * g_row / (sqrt(s_row) + eps). Replicated tables of a sharded collection are
    stored flat, row after row; TorchRec's RowWiseAdagrad needs matrices. dim: width of a row, equal for all tables.
    found_inf: as of torch's fused optimizers, None or a scalar: if it is 1, a step changes nothing.
    """

    found_inf: Tensor | None = None

    def __init__(self, tables: Iterable[Tensor], dim: int, lr: float, eps: float) -> None:
        super().__init__(tables, {"lr": lr, "eps": eps})
        self.dim = dim
        for group in self.param_groups:
            for table in group["params"]:
                rows = table.numel() // dim
                self.state[table]["sum"] = torch.zeros(rows, 1, dtype=table.dtype, device=table.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                weight_ND = table.view(-1, self.dim)
                gradient_ND = table.grad.view(-1, self.dim)
                if self.found_inf is not None:  # a gradient of 0 changes neither sum nor weight
                    gradient_ND = gradient_ND.masked_fill(self.found_inf > 0, 0)
                sum_N1 = self.state[table]["sum"]
                sum_N1.add_(gradient_ND.square().mean(dim=1, keepdim=True))
                weight_ND.addcdiv_(gradient_ND, sum_N1.sqrt().add_(group["eps"]), value=-group["lr"])
