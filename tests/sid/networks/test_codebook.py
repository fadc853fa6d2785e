"""Codebooks: nearest codes against a slow loop, losses and moving averages by hand, placement, revival."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sidrec.sid.networks.codebook import DECAY, Codebook
from sidrec.sid.networks.network import nearest
from sidrec.sid.replicas import Replicas


def codebook(codewords: list[list[float]], **settings: object) -> Codebook:
    made = Codebook(len(codewords), len(codewords[0]), **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        made.weight.copy_(torch.tensor(codewords))
    return made


def test_nearest_equals_a_loop_over_all_codewords() -> None:
    generator = torch.Generator().manual_seed(0)
    points, codewords = torch.randn(50, 4, generator=generator), torch.randn(17, 4, generator=generator)
    slow = [min(range(17), key=lambda code: float((point - codewords[code]).square().sum())) for point in points]
    assert nearest(points, codewords).tolist() == slow


def test_of_equals_the_first_is_nearest() -> None:
    assert nearest(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [-1.0], [1.0]])).tolist() == [0, 0]


def test_cosine_looks_at_directions_alone() -> None:
    """(3, 0) is nearer to (1, 1) x 2 than to (0.1, 0), but points where the latter points."""
    points = torch.tensor([[3.0, 0.0]])
    assert codebook([[0.1, 0.0], [2.0, 2.0]]).nearest(points).tolist() == [1]
    by_cosine = codebook([[0.1, 0.0], [2.0, 2.0]], cosine=True)
    codes, quantized = by_cosine(points)
    assert codes.tolist() == [0]
    assert quantized.tolist() == [[1.0, 0.0]]


def test_losses_by_hand_and_where_their_gradients_go() -> None:
    """Point 3, codeword 1: both squared errors 4; d/dcodeword = 2 (1 - 3) = -4, d/dpoint = 4, never both."""
    book = codebook([[1.0], [9.0]])
    point = torch.tensor([[3.0]], requires_grad=True)
    codebook_loss, commitment = book.losses(point, book(point)[1])
    assert (float(codebook_loss.detach()), float(commitment.detach())) == (4.0, 4.0)
    codewords: Tensor = book.weight
    assert torch.autograd.grad(codebook_loss, [codewords, point], allow_unused=True)[1] is None
    codebook_loss, commitment = book.losses(point, book(point)[1])
    codebook_loss.backward()
    assert codewords.grad is not None
    assert codewords.grad.tolist() == [[-4.0], [0.0]]
    codewords.grad = None
    commitment.backward()
    assert codewords.grad is None
    assert point.grad is not None
    assert point.grad.tolist() == [[4.0]]


def test_moving_averages_by_hand() -> None:
    """Codeword 1 (count 1, sum 1) took 2 and 4: sum .99 + .01 * 6, count .99 + .01 * 2."""
    book = codebook([[0.0], [5.0]], learning="ema")
    book._sum_KD.copy_(torch.tensor([[1.0], [5.0]]))
    book(torch.tensor([[2.0], [1.0]]))
    expected = (DECAY * 1 + (1 - DECAY) * 3) / (DECAY + (1 - DECAY) * 2)
    assert book.weight.tolist() == [[pytest.approx(expected)], [5.0]]
    book.eval()
    book(torch.tensor([[2.0], [1.0]]))
    assert book.weight.tolist() == [[pytest.approx(expected)], [5.0]]


class Doubled(Replicas):
    """As if another replica saw exactly the same."""

    def sum(self, tensor: Tensor) -> Tensor:
        return 2 * tensor


def test_moving_averages_count_all_replicas() -> None:
    book = codebook([[0.0], [5.0]], learning="ema")
    book._sum_KD.zero_()
    book.replicas = Doubled(0, 2)
    book(torch.tensor([[1.0]]))
    assert book.weight[0].item() == pytest.approx((1 - DECAY) * 2 / (DECAY + (1 - DECAY) * 2))


def test_kmeans_places_codewords_on_far_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 80.0]])
    noise = 0.1 * torch.randn(90, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    book = Codebook(3, 2)
    book.place(centres.repeat(30, 1) + noise)
    assert (torch.cdist(centres, book.weight.detach()).min(dim=1).values < 0.1).all()


def test_kmeans_is_a_function_of_torch_s_seed() -> None:
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    placed = []
    for seed in (1, 1, 2):
        book = Codebook(16, 4)
        torch.manual_seed(seed)
        book.place(points)
        placed.append(book.weight.detach().clone())
    assert torch.equal(placed[0], placed[1])
    assert not torch.equal(placed[0], placed[2])


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_revival_moves_dead_codes_alone_onto_distinct_points(learning: str) -> None:
    book = codebook([[0.0], [1.0], [2.0], [3.0]], learning=learning)
    points = torch.tensor([[10.0], [11.0]])
    assert book.revive(torch.tensor([False, True, True, True]), points) == 2
    assert book.weight[[0, 3], 0].tolist() == [0.0, 3.0]  # alive, and one dead code more than there are points
    assert sorted(book.weight[1:3, 0].tolist()) == [10.0, 11.0]


def test_nothing_dead_nothing_moved() -> None:
    book = codebook([[0.0], [1.0]])
    before = book.weight.detach().clone()
    assert book.revive(torch.zeros(2, dtype=torch.bool), torch.ones(3, 1)) == 0
    assert np.array_equal(before, book.weight.detach())
