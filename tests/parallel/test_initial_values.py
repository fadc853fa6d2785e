"""Initial values drawn by torch's operators are NumPy's, to the last bit, and rows do not depend on how they are cut.

Shapes: N rows, D width of a table.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from sidrec.parallel import initial_values
from sidrec.parallel.initial_values import CPU, drawn_by_numpy, drawn_by_torch, fill_tables, initial_rows

KEYS = {"zero": 0, "one": 1, "low half": 2**64 - 1, "high half": 2**127 + 2**64, "largest": 2**128 - 1, "some": 3**80}
PARTS = ((0, 1), (1, 2), (3, 1000), (4, 4), (5, 0), (2**40 + 5, 4097))
"""First draw and number of draws: within a block of four, across blocks, none, far from the first."""


@pytest.mark.parametrize("name", KEYS)
def test_draws_equal_numpy_s(name: str) -> None:
    for start, count in PARTS:
        found = drawn_by_torch(KEYS[name], start, count, CPU)
        assert found.dtype == torch.float64
        assert found.shape == (count,)
        assert torch.equal(found, drawn_by_numpy(KEYS[name], start, count, CPU))


def test_draws_equal_the_bit_generator_s_integers() -> None:
    """The 53 highest bits of Philox's integers, and a uniform distribution."""
    integers = np.random.Philox(key=5).random_raw(4000)
    found = drawn_by_torch(5, 0, 4000, CPU)
    assert torch.equal(found, torch.from_numpy((integers >> np.uint64(11)).astype(np.float64) * 2.0**-53))
    assert abs(found.mean().item() - 0.5) < 0.02


TABLE = EmbeddingBagConfig(
    name="t", num_embeddings=37, embedding_dim=5, feature_names=["t"], weight_init_min=-0.3, weight_init_max=0.7
)


class OneTable(nn.Module):
    """A table under the name that TorchRec gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(TABLE.num_embeddings, TABLE.embedding_dim)
        self.items = nn.Module()
        self.items.add_module("embedding_bags", nn.ModuleDict({"t": self.table}))


def filled() -> Tensor:
    module = OneTable()
    fill_tables(module, {"t": TABLE}, seed=3)
    return module.table.weight.detach()


def test_tables_are_the_same_by_either_way_and_in_any_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    by_numpy_ND = filled()
    assert by_numpy_ND.min() >= -0.3
    assert by_numpy_ND.max() <= 0.7
    assert len(by_numpy_ND.unique()) > 180
    monkeypatch.setattr(initial_values, "drawn_by_numpy", drawn_by_torch)
    assert torch.equal(filled(), by_numpy_ND)
    monkeypatch.setitem(initial_values.ROWS_AT_A_TIME, "cpu", 8)
    assert torch.equal(filled(), by_numpy_ND)
    assert torch.equal(initial_rows(3, TABLE, 30, 7), by_numpy_ND[30:])
    assert not torch.equal(initial_rows(4, TABLE, 30, 7), by_numpy_ND[30:])
