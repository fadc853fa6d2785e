"""Row-wise Adagrad for replicated tables, as FBGEMM's fused kernel computes it for sharded ones.

TorchRec's own RowWiseAdagrad wants tables as matrices; the replicated tables of a sharded collection are flat.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class FlatRowwiseAdagrad(Optimizer):
    """s_row += mean(g_row^2); w_row -= lr * g_row / (sqrt(s_row) + eps), for tables stored flat, row after row.

    dim: width of a row, the same for all tables.
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
