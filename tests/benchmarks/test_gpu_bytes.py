"""Bytes of operators and of fused chains, counted by hand."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from benchmarks.gpu_bytes import bytes_of, scheduled_bytes, size, step_bytes


def test_an_expanded_element_counts_once() -> None:
    assert size(torch.zeros(3, 1).expand(3, 5)) == 3 * 4
    assert size(torch.zeros(0, 5)) == 0


def test_a_gather_reads_the_rows_that_it_gathers() -> None:
    table, index = torch.zeros(1000, 4), torch.zeros(3, dtype=torch.int64)
    assert bytes_of("embedding", [table, index], [torch.zeros(3, 4)]) == 3 * 4 * 4 + 3 * 8 + 3 * 4 * 4
    assert bytes_of("index_select", [torch.zeros(1000), index], [torch.zeros(3)]) == 3 * 4 + 3 * 8 + 3 * 4
    values = torch.zeros(3, 4)
    assert bytes_of("index_put_", [table, index, values], [table]) == 3 * 3 * 4 * 4 + 3 * 8  # read, read and written
    assert bytes_of("new_zeros", [table], [table]) == bytes_of("relu", [table], [table]) / 2 == 16_000


def test_a_fused_chain_reads_and_writes_once() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with mode:
        inputs = [torch.empty(100, 100), torch.empty(100, 100)]

    def chain(x: Tensor, y: Tensor) -> list[Tensor]:
        return [torch.relu(x + y) * 2]

    assert scheduled_bytes(chain, inputs, mode) == 3 * 100 * 100 * 4


def test_a_step_of_hids_by_hand() -> None:
    """The mean of a history: of 50 x 65,536 positions, forward reads each row of 256 bytes, and backward again."""
    found = step_bytes({"kind": "hid"}, fused=False)
    rows = 50 * 65_536 * 256
    assert 2 * rows < found["pooled histories"] < 2 * rows + 6 * 1_000_000 * 256
    assert found["tables and element-wise Adagrad"] == 7 * 1_000_000 * 256
