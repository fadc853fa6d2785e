"""Fused regions: chains of operators between large tensors that run as one operator on a GPU.

An eager chain writes and reads every tensor in between, and each of its operators costs a launch. A `Region` makes two
operators of a plain function, `sidrec::NAME` and `sidrec::NAME_backward`; where `Paths.regions` is "compiled",
torch.compile fuses what is in them. The functions are in fused.py.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

Function = Callable[[list[Tensor], list[float]], list[Tensor]]
"""(inputs, options) to outputs: first the region's results, then what its backward reads besides."""
Backward = Callable[[list[Tensor], list[Tensor], list[Tensor], list[float]], list[Tensor | None]]
"""(inputs, outputs, gradients of the results, options) to a gradient for each input; None for one without."""
REGIONS: dict[str, "Region"] = {}
"""By name."""
_LIBRARY = torch.library.Library("sidrec", "FRAGMENT")


class Region:
    """A plain function of tensors as an operator with a gradient.

    name: of the operator, in the namespace `sidrec`. rows: where the inputs end that have rows of a batch; the others
    are parameters. results: outputs that are the region's; others are kept for backward. backward: None to compute the
    function again and take its vector-Jacobian product.

    Autocast does not reach into a region: it computes in the widest type among its inputs.
    """

    def __init__(
        self, name: str, function: Function, rows: int, backward: Backward | None = None, results: int = 1
    ) -> None:
        self.name, self.rows, self.results = name, rows, results
        self.function, self._own_backward = function, backward
        REGIONS[name] = self
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        _LIBRARY.define(f"{name}(Tensor[] inputs, float[] options, bool compiled) -> Tensor[]")
        _LIBRARY.define(
            f"{name}_backward(Tensor[] inputs, Tensor[] outputs, Tensor[] gradients, bool[] wanted, float[] options,"
            " bool compiled) -> Tensor[]"
        )
        _LIBRARY.impl(name, self._run, "CompositeExplicitAutograd")
        _LIBRARY.impl(f"{name}_backward", self._run_backward, "CompositeExplicitAutograd")

    def __call__(self, regions: str, *inputs: Tensor, options: Sequence[float] = ()) -> tuple[Tensor, ...]:
        """The results, which autograd can differentiate. regions: "plain" or "compiled", as `Paths.regions`."""
        return _differentiable(self.name, regions, options, inputs)

    def forward(self, regions: str, *inputs: Tensor, options: Sequence[float] = ()) -> list[Tensor]:
        """All outputs, without a gradient."""
        run = getattr(torch.ops.sidrec, self.name)
        return run([tensor.detach() for tensor in inputs], list(options), regions == "compiled")

    def backward(
        self,
        regions: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor],
        wanted: Sequence[bool],
        options: Sequence[float] = (),
    ) -> list[Tensor | None]:
        """A gradient for each input that is wanted, None for others. gradients: of the results."""
        run = getattr(torch.ops.sidrec, f"{self.name}_backward")
        lists = ([tensor.detach() for tensor in tensors] for tensors in (inputs, outputs, gradients))
        found = iter(run(*lists, list(wanted), list(options), regions == "compiled"))
        return [next(found) if some else None for some in wanted]

    # What the operators run: the plain functions, or torch.compile's fused ones.

    def _run(self, inputs: list[Tensor], options: list[float], compiled: bool) -> list[Tensor]:
        with _without_autocast(inputs[0].device.type):
            if not compiled:
                return self._outputs(inputs, options)
            self._vary(inputs)
            return self._fused(self._outputs)(inputs, options)

    def _run_backward(
        self,
        inputs: list[Tensor],
        outputs: list[Tensor],
        gradients: list[Tensor],
        wanted: list[bool],
        options: list[float],
        compiled: bool,
    ) -> list[Tensor]:
        with _without_autocast(inputs[0].device.type):
            if not compiled:
                with _with_autograd():
                    return self._gradients(inputs, outputs, gradients, wanted, options)
            self._vary(inputs)
            for tensor in (*outputs, *gradients):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return self._fused(self._gradients)(inputs, outputs, gradients, wanted, options)

    def _vary(self, inputs: list[Tensor]) -> None:
        """Rows and item bags differ between batches; the other sizes do not, and are constants of the kernels."""
        for tensor in inputs[: self.rows]:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)

    def _fused(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if method not in self._compiled:
            self._compiled[method] = torch.compile(self.with_own_code(method))
        return self._compiled[method]

    def with_own_code(self, method: Any) -> Callable[..., Any]:
        """A copy of one of this region's methods. Dynamo counts compilations by code, and gives up after a few: regions
        must not count together."""
        shared = method.__func__
        code = shared.__code__.replace(co_name=f"{self.name}{shared.__name__}")
        return MethodType(FunctionType(code, shared.__globals__, code.co_name), self)

    def _outputs(self, inputs: list[Tensor], options: list[float]) -> list[Tensor]:
        return self.function(_widest(inputs), options)

    def _gradients(
        self,
        inputs: list[Tensor],
        outputs: list[Tensor],
        gradients: list[Tensor],
        wanted: list[bool],
        options: list[float],
    ) -> list[Tensor]:
        wide = _widest(inputs)
        if self._own_backward is None:
            found = _vector_jacobian_product(self.function, wide, gradients, wanted, options)
        else:
            every = self._own_backward(wide, outputs, gradients, options)
            found = [gradient for gradient, some in zip(every, wanted, strict=True) if some and gradient is not None]
        types = [tensor.dtype for tensor, some in zip(inputs, wanted, strict=True) if some]
        return [gradient.to(dtype) for gradient, dtype in zip(found, types, strict=True)]


def _widest(inputs: list[Tensor]) -> list[Tensor]:
    """The inputs, those of floating point in the widest of their types."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in inputs if tensor.is_floating_point()))
    return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs]


def _without_autocast(device_type: str) -> AbstractContextManager[None]:
    available = torch.amp.is_autocast_available(device_type)  # not on `meta`, where operators are counted
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


def vjp(function: Callable[..., Any], *inputs: Tensor) -> tuple[Any, Callable[..., Any]]:
    """The function's value, and what maps a gradient of it to gradients of the inputs."""
    value, pull_back = torch.func.vjp(function, *inputs)  # type: ignore[misc]
    return value, pull_back


_EXCLUDED = torch._C._dispatch_tls_local_exclude_set()


def _with_autograd() -> AbstractContextManager[None]:
    """Switches autograd on in an operator that a TorchDispatchMode sees: such a mode excludes it."""
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), _EXCLUDED)


def _vector_jacobian_product(
    function: Function, inputs: list[Tensor], gradients: list[Tensor], wanted: list[bool], options: list[float]
) -> list[Tensor]:
    """Gradients of the wanted inputs."""

    def results(*chosen: Tensor) -> tuple[Tensor, ...]:
        of_chosen = iter(chosen)
        mixed = [next(of_chosen) if some else tensor for tensor, some in zip(inputs, wanted, strict=True)]
        return tuple(function(mixed, options)[: len(gradients)])

    chosen = [tensor for tensor, some in zip(inputs, wanted, strict=True) if some]
    _, pull_back = vjp(results, *chosen)
    return list(pull_back(tuple(gradients)))


def is_traced(value: object) -> bool:
    """Whether a pipeline of TorchRec traces the model with it, in search of lookups: it is no tensor then."""
    return isinstance(value, fx.Proxy)


@fx.wrap  # TorchRec's pipelines trace the ranker, and fx cannot trace an autograd function
def _differentiable(name: str, regions: str, options: Sequence[float], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return _Run.apply(REGIONS[name], regions, options, *inputs)  # type: ignore[no-untyped-call]


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, region: Region, regions: str, options: Sequence[float], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.region, ctx.regions, ctx.options, ctx.inputs = region, regions, options, len(inputs)
        outputs = region.forward(regions, *inputs, options=options)
        ctx.save_for_backward(*inputs, *outputs)
        return tuple(outputs[: region.results])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs, outputs = saved[: ctx.inputs], saved[ctx.inputs :]
        wanted = ctx.needs_input_grad[3:]
        found = ctx.region.backward(ctx.regions, inputs, outputs, gradients, wanted, ctx.options)
        return None, None, None, *found
