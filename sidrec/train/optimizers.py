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


def build_optimizer(model: DistributedModelParallel, config: OptimizerConfig, dim: int) -> "ScheduledOptimizer":
    """One optimizer over the whole sharded model. dim: width of the tables."""
    fused = model.fused_optimizer
    others = {name: p for name, p in model.named_parameters() if name not in fused.params}
    dense = {name: p for name, p in others.items() if ".embedding_bags." not in name}
    tables = {name: p for name, p in others.items() if name not in dense and p.numel()}
    parts: list[tuple[str, KeyedOptimizer]] = [("", fused)]
    own = {name: p for name, p in tables.items() if config.hid and name.endswith(f".embedding_bags.{HID}.weight")}
    shared = {name: p for name, p in tables.items() if name not in own}
    for params, optimizer in ((shared, config.tables), (own, config.hid)):
        if params and optimizer:
            parts.append(("", KeyedOptimizerWrapper(params, _replicated(optimizer, dim))))
    if dense:
        parts.append(("", KeyedOptimizerWrapper(dense, _dense(config.dense))))
    return ScheduledOptimizer(parts, fused)


def _dense(config: DenseOptimizer) -> Factory:
    kinds: Mapping[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad}
    return lambda params: kinds[config.kind](params, lr=config.lr, weight_decay=config.weight_decay)


def _replicated(config: TableOptimizer, dim: int) -> Factory:
    """torch's counterpart of the fused table optimizer."""
    match config:
        case AdagradTables():
            return lambda params: torch.optim.Adagrad(params, lr=config.lr, eps=config.eps)
        case RowwiseAdagradTables():
            return lambda params: FlatRowwiseAdagrad(params, dim, config.lr, config.eps)
        case SgdTables():
            return lambda params: torch.optim.SGD(params, lr=config.lr)


class ScheduledOptimizer(CombinedOptimizer):
    """The optimizers of tables and layers, with one factor on every learning rate."""

    def __init__(self, parts: list[tuple[str, KeyedOptimizer]], fused: KeyedOptimizer) -> None:
        super().__init__(parts)
        self.fused = fused
        self.base = [group["lr"] for _, part in parts for group in part.param_groups]

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
    """

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
                sum_N1 = self.state[table]["sum"]
                sum_N1.add_(gradient_ND.square().mean(dim=1, keepdim=True))
                weight_ND.addcdiv_(gradient_ND, sum_N1.sqrt().add_(group["eps"]), value=-group["lr"])
