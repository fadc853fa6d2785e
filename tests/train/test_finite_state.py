"""What is finite may be saved, however large; one value that is not is found, wherever it is."""

from math import inf, nan

import pytest
import torch
from torch import Tensor

from sidrec.checkpoint.tensor_shard import TensorShard, whole_tensor
from sidrec.errors import NonFiniteError
from sidrec.parallel.process_group import joined_ranks
from sidrec.train.step import check_state

LARGEST_RD = torch.full((10, 4), torch.finfo(torch.float32).max)


def test_finite_states() -> None:
    states = (
        LARGEST_RD,  # their sum is not
        LARGEST_RD.t()[1:],
        torch.full((70_000,), 60_000.0, dtype=torch.float16),
        torch.tensor(2.0),
        torch.zeros(0, 3),
        torch.tensor([1, 2]),
    )
    with joined_ranks() as ranks:
        check_state([whole_tensor(f"state {number}", state) for number, state in enumerate(states)], 1, ranks)


@pytest.mark.parametrize(
    ("state", "where"),
    [
        (torch.tensor([[1.0, 2.0], [inf, -inf]]), "tensor broken, row 1;"),
        (torch.tensor([[1.0, nan], [0.0, 0.0], [-inf, 0.0]]), "tensor broken, rows 0, 2;"),
        (torch.tensor(-inf), "tensor broken;"),
    ],
)
def test_a_state_that_is_not(state: Tensor, where: str) -> None:
    shards = [whole_tensor("sound", LARGEST_RD), whole_tensor("broken", state)]
    with joined_ranks() as ranks, pytest.raises(NonFiniteError) as refused:
        check_state(shards, 7, ranks)
    assert where in str(refused.value)
    assert str(refused.value).startswith("step 7: ")


def test_rows_are_counted_from_the_tensor_s_first() -> None:
    piece = TensorShard("broken", (20, 1), (10, 0), torch.tensor([[0.0], [nan]]))
    with joined_ranks() as ranks, pytest.raises(NonFiniteError, match="row 11;"):
        check_state([piece], 7, ranks)
