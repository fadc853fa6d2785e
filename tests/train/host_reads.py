"""Finds where code reads tensors on the host: on a GPU, each such place waits for all work that was queued before.

It runs on CPU tensors, as in `tests/train/test_operators.py`. An operator counts if its CUDA kernel reads a value or a
size on the host. Each read is booked on the innermost function of sidrec, TorchRec or torch's optimizers on the stack.
"""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READING = {
    "_local_scalar_dense", "nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive", "masked_select",
    "bincount", "equal", "is_nonzero", "histc",
}  # fmt: skip
"""ATen operators that read on the host. So do indexing by a boolean mask and repeat_interleave without a size."""
INDEXING = {"index", "index_put", "index_put_"}
METHODS = ("tolist", "numpy", "cpu", "__array__")
"""Methods of a tensor that reach the host without one of these operators, where the tensor is on a CPU."""
WATCHED = ("sidrec", "torchrec", "torch/optim", "torch/nn/parallel")
INPUT_DISTRIBUTION = "TorchRec's input distribution"
"""Sends ids to the ranks that hold their rows. Ranks read on the host how many ids they send and receive. What it calls
of sidrec has its own place."""
OF_INPUT_DISTRIBUTION = {"_start_data_dist", "wait_sparse_data_dist", "KJTAllToAllTensorsAwaitable._wait_impl"}
USED_PARAMETERS = "DDP's map of used parameters"
"""An int32 per parameter, always on the host, which DDP sets during backward."""

BACKWARD = ("TrainPipelineSparseDist._backward", "TrainingStep._backward_into_tables")


def reader() -> str:
    """The innermost watched function on the stack, as "package/module.py:function"."""
    place = "elsewhere"
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_qualname
        if "/torchrec/" in path and (name in OF_INPUT_DISTRIBUTION or name.rpartition(".")[2] in OF_INPUT_DISTRIBUTION):
            return place if place.startswith("sidrec/") else INPUT_DISTRIBUTION
        path = f"/{path.rpartition('/site-packages/')[2]}"  # an environment may lie in a checkout called sidrec
        package = next((package for package in WATCHED if f"/{package}/" in path and "/tests/" not in path), None)
        if package and place == "elsewhere":
            place = f"{package}/{path.rpartition(f'/{package}/')[2]}:{name.partition('.<locals>')[0]}"
        frame = frame.f_back
    return place


class HostReads(TorchDispatchMode):
    """A context that counts reads on the host by place."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: Counter[str] = Counter()
        self._patches = ExitStack()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.partition("::")[2]
        by_mask = name in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        without_size = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in READING or by_mask or without_size:
            scalar = name == "_local_scalar_dense" and args[0].dtype == torch.int32 and args[0].dim() == 0
            place = reader()
            self.places[USED_PARAMETERS if scalar and place.endswith(BACKWARD) else place] += 1
        return function(*args, **(kwargs or {}))

    def __enter__(self) -> "HostReads":
        for name in METHODS:
            self._patches.enter_context(patch.object(Tensor, name, self._counted(getattr(Tensor, name))))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patches.close()

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.places[reader()] += 1
            return method(tensor, *args, **kwargs)

        return counted
