"""Bytes that one training step moves in a GPU's memory, counted from its operators, by part of the model.

    python -m benchmarks.gpu_bytes [--write]

It needs no GPU: the model runs on tensors without data (device `meta`), and only shapes count. An operator reads its
inputs and writes its outputs once; views move nothing; a gather reads the rows that it gathers, however small the table
is. Eager: every operator by itself. Fused: the operators of a region (`sidrec.model.regions`) as inductor's scheduler
fuses them, what each of its kernels reads and writes, tensors between kernels included. The scheduler is the one for
CPUs, which needs no Triton; a GPU's may fuse more or less.

Counted without operators: the tables, whose kernels are FBGEMM's (rows read, vectors written, gradients read, weights
and element-wise Adagrad's state read and written, every item with a row of its own in each table), and the check for
values that are not finite, one read of the tables' gradients. A sort counts as one pass. Optimizer and gradients of
dense layers are left out: they are too small to matter.

--write replaces results/gpu_bytes/bytes.json.

Shapes: B rows, U items, T history positions, F item features, D width.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch._inductor.compile_fx import _recursive_post_grad_passes, view_to_reshape
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from benchmarks.tables import markdown_table
from sidrec.config.item import SemanticItem
from sidrec.config.model import ModelConfig
from sidrec.data.batch import Batch
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import HID, ItemTable
from sidrec.io.files import write_json
from sidrec.model.history import GPU
from sidrec.model.ranker import Ranker
from sidrec.model.regions import REGIONS
from sidrec.study.results import conditions


class StepShape(NamedTuple):
    """Sizes of a batch: B, U, T, D, and the numbers of dense and statistics columns. Context columns are left out."""

    rows: int
    items: int
    history: int
    width: int
    dense: int = 13
    stats: int = 2


ROOFLINE = StepShape(65_536, 1_000_000, 50, 64)
MODELS: dict[str, dict[str, Any]] = {
    "HID alone": {"kind": "hid"},
    "SID-Coord without alignment": {"kind": "sid_coord", "alignment": {"kind": "none"}},
    "SID-Coord": {"kind": "sid_coord"},
    "SID-Coord, AutoDis on a grid of 64": {"kind": "sid_coord", "alignment": {"kind": "autodis", "grid": 64}},
    "recommended": {"kind": "sid_coord", "preset": "recommended"},
}
RESULT = Path(__file__).parent / "results" / "gpu_bytes" / "bytes.json"
GB = 1e9
TABLES, CHECK = "tables and element-wise Adagrad", "check for non-finite values"
PASSES_OF_TABLES = 7
"""Rows read, vectors written, gradients read, weights and state read and written."""

GATHERS = {"embedding", "index_select", "_embedding_bag", "_embedding_bag_forward_only"}
WITHOUT_READS = {
    "zeros",
    "zeros_like",
    "new_zeros",
    "ones_like",
    "full",
    "full_like",
    "scalar_tensor",
    "arange",
    "fill_",
}
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense"}


def size(tensor: Tensor) -> int:
    """Bytes of its elements, an expanded one once."""
    elements = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= length if stride or not length else 1
    return elements * tensor.element_size()


def bytes_of(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """What an operator reads and writes."""
    written = sum(map(size, outputs))
    if name in WITHOUT_READS:
        return written
    if name in GATHERS:  # table, index, and perhaps bags and weights
        table, index, *others = inputs
        rows = index.numel() * table[:1].numel() * table.element_size()
        return rows + size(index) + sum(map(size, others)) + size(outputs[0])
    if name == "embedding_dense_backward":  # fills with zeros, then adds rows
        return written + 3 * size(inputs[0]) + size(inputs[1])
    if name == "copy_":
        return 2 * size(inputs[1])
    if name in ("index_put_", "_index_put_impl_"):  # with accumulate: reads and writes the rows of the index
        _, index, values = inputs
        return 3 * size(values) + size(index)
    return written + sum(map(size, inputs))


# Regions as inductor schedules them.


@cache
def fused_bytes(name: str, shapes: tuple[Any, ...], wanted: tuple[bool, ...] | None, options: tuple[float, ...]) -> int:
    """Of a region's forward, or with `wanted` its backward. shapes: (shape, stride, type) of each tensor, in lists."""
    region = REGIONS[name]
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with mode:
        lists = [[torch.empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in part] for part in shapes]

    def run(*tensors: Tensor) -> list[Tensor]:
        found = iter(tensors)
        parts = [[next(found) for _ in part] for part in shapes]
        if wanted is None:
            return region._outputs(parts[0], list(options))
        tensors_in, outputs, gradients = parts
        return region._gradients(tensors_in, outputs, gradients, list(wanted), list(options))

    return scheduled_bytes(run, [tensor for part in lists for tensor in part], mode)


def scheduled_bytes(function: Callable[..., Any], inputs: Sequence[Tensor], mode: FakeTensorMode) -> int:
    """Bytes that the kernels of inductor's scheduler read and write."""
    with mode:
        graph = make_fx(function, decomposition_table=select_decomp_table())(*inputs)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        joint_graph_passes(graph)
        view_to_reshape(graph)
        with V.set_fake_mode(mode):
            _recursive_post_grad_passes(graph, is_inference=True)
            lowered = GraphLowering(graph, example_inputs=inputs, shape_env=mode.shape_env)
            with V.set_graph_handler(lowered), V.set_debug_handler(DebugContext()):
                lowered.run(*inputs)
                lowered._update_scheduler()
                return lowered.count_bytes()[0]


RegionCall = tuple[str, tuple[Any, ...], tuple[bool, ...] | None, tuple[float, ...]]
"""Arguments of `fused_bytes`."""


# The operators of a step, by part.

SPLIT = "joining the gradients of the lookup's parts"
PLACES = (
    ("model/pooling.py", "", "pooled histories"),
    ("model/alignment.py", "similarities", "cosines"),
    ("model/alignment.py", "InterestAlignment", "AutoDis and its pooling"),
    ("model/fusion_and_gate.py", "GranularityFusion", "fusion of granules"),
    ("model/fusion_and_gate.py", "AdditiveAttention", "fusion of granules"),
    ("model/fusion_and_gate.py", "", "gate"),
    ("model/semantic_part.py", "SemanticPart._fuse", "fusion of granules"),
    ("model/semantic_part.py", "fused", "fusion of granules"),
    ("model/semantic_part.py", "", "gathers of targets, masks"),
    ("model/items.py", "", "gathers of targets, masks"),
    ("model/ranker.py", "GradientBoundary", "gathers of targets, masks"),
    ("model/ranker.py", "", "backbone and loss"),
)
"""File and start of a function's qualified name -> part; the innermost frame on the stack counts."""


def part_of_frame() -> str:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_qualname
        for file, start, part in PLACES:
            if file in path and name.startswith(start):
                return part
        frame = frame.f_back
    return "backbone and loss"


class Bytes(TorchDispatchMode):
    """Adds up bytes by part. An operator of backward belongs to the part of the forward operator that it follows."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts: Counter[str] = Counter()
        self._regions: list[tuple[str, RegionCall]] = []
        self._part_of_node: dict[int, str] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        namespace, _, name = function._schema.name.partition("::")
        view = any(argument.alias_info and not argument.alias_info.is_write for argument in function._schema.arguments)
        part = self._part()
        if view or namespace == "profiler" or name in ALLOCATIONS:
            return found
        if namespace == "sidrec":
            self._regions.append((part, _region_call(name, args)))
        else:
            inputs = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
            outputs = [tensor for tensor in tree_leaves(found) if isinstance(tensor, Tensor)]
            self._parts[part] += bytes_of(name, inputs, outputs)
        return found

    def parts(self) -> Counter[str]:
        """Bytes by part. Call it outside the mode, in which inductor cannot trace."""
        of_regions: Counter[str] = Counter()
        for part, call in self._regions:
            of_regions[part] += fused_bytes(*call)
        return self._parts + of_regions

    def _part(self) -> str:
        node: Any = torch._C._current_autograd_node()
        if node is not None:
            if node.name().startswith(("Split", "_Split")):
                return SPLIT
            number = node._sequence_nr()
            known = [before for before in self._part_of_node if before <= number]
            return self._part_of_node[max(known)] if known else "backbone and loss"
        part = part_of_frame()
        # of the newest node, which the first operator after it computes
        self._part_of_node.setdefault(torch.autograd._get_sequence_nr() - 1, part)
        return part


def _region_call(name: str, args: Sequence[Any]) -> RegionCall:
    """Arguments of `fused_bytes` for a call of a region's operator."""
    backward = name.endswith("_backward")
    count = 3 if backward else 1
    shapes = tuple(
        tuple((tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype) for tensor in part) for part in args[:count]
    )
    wanted, options = (tuple(args[3]), args[4]) if backward else (None, args[1])
    return name.removesuffix("_backward"), shapes, wanted, tuple(options)


class LookedUp(nn.Module):
    """In place of the item tables: a leaf that the layers' gradient ends at."""

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        self.names, self.width = list(names), width

    def forward(self, items: KeyedJaggedTensor) -> KeyedTensor:
        values_UF = torch.empty(items.stride(), len(self.names) * self.width, device="meta", requires_grad=True)
        return KeyedTensor(self.names, [self.width] * len(self.names), values_UF)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def batch_of(names: list[str], shape: StepShape) -> Batch:
    ids, rows, items = torch.int64, shape.rows, shape.items
    bags = len(names) * items
    return Batch(
        items=KeyedJaggedTensor(names, meta(bags, dtype=ids), lengths=meta(bags, dtype=torch.int32), stride=items),
        context=KeyedJaggedTensor([], meta(0, dtype=ids), lengths=meta(0, dtype=torch.int32), stride=rows),
        token_weights_UW=meta(items, 0),
        granules_UG=meta(items, 0, dtype=ids),
        content_UV=meta(items, 0),
        target_B=meta(rows, dtype=ids),
        history_BT=meta(rows, shape.history, dtype=ids),
        dense_BX=meta(rows, shape.dense),
        stats_BS=meta(rows, shape.stats),
        label_B=meta(rows),
        weight_B=meta(rows),
        row_B=meta(rows, dtype=ids),
        user_B=meta(rows, dtype=ids),
        item_B=meta(rows, dtype=ids),
        rows_per_rank=meta(),
        chance_B=meta(rows),
    )


def step_bytes(item: dict[str, Any], fused: bool, shape: StepShape = ROOFLINE) -> Counter[str]:
    """Bytes of a step by part."""
    tree = {"embedding_dim": shape.width, "context": [], "item": item}
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python(tree)
    names = [HID, *(config.item.granularities if isinstance(config.item, SemanticItem) else ())]
    tables = {name: ItemTable(shape.items, (name,)) for name in names}
    moments = (0.0,) * shape.stats, (1.0,) * shape.stats
    sizes = Sizes(tables, {}, shape.dense, *moments, content=0, rows_per_lane=shape.rows)
    model = Ranker(config, sizes, GPU._replace(regions="plain" if fused else "none")).to("meta")
    model.items = LookedUp(names, shape.width)
    with Bytes() as counted:
        loss, _ = model(batch_of(names, shape))
        loss.backward()
    vectors = shape.items * len(names) * shape.width * 4
    return counted.parts() + Counter({TABLES: PASSES_OF_TABLES * vectors, CHECK: vectors})


def table_lines(found: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    for model, parts in found.items():
        yield f"\n{model}, GB a step\n"
        rows = [[part, f"{gb['eager']:.2f}", f"{gb['fused']:.2f}"] for part, gb in parts.items()]
        yield markdown_table(["part", "eager", "fused"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes that one training step moves, by part of the model.")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULT.name} of the recorded results")
    write = parser.parse_args().write
    found: dict[str, dict[str, dict[str, float]]] = {}
    for model, item in MODELS.items():
        eager, fused = step_bytes(item, fused=False), step_bytes(item, fused=True)
        parts = {part: {"eager": eager[part] / GB, "fused": fused[part] / GB} for part in eager | fused}
        total = {"eager": eager.total() / GB, "fused": fused.total() / GB}
        found[model] = {**dict(sorted(parts.items(), key=lambda entry: -entry[1]["eager"])), "sum": total}
    print("\n".join(table_lines(found)))
    if write:
        shape = {name: ROOFLINE._asdict()[name] for name in ("rows", "items", "history", "width")}
        rounded = {
            model: {part: {how: round(gb, 3) for how, gb in both.items()} for part, both in parts.items()}
            for model, parts in found.items()
        }
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        write_json(RESULT, {"shape": shape, "gigabytes": rounded, "conditions": conditions()})


if __name__ == "__main__":
    main()
