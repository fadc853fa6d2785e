import numpy as np
import pytest

from sidrec.config import ConfigError
from sidrec.data.reader import Lanes, Shuffling


def test_the_picture_in_the_docstring() -> None:
    lanes = Lanes(rows=7, lanes=2, batch_size=4)
    assert [list(lanes.interval(lane)) for lane in range(2)] == [[0, 1, 2], [3, 4, 5, 6]]
    assert (lanes.rows_per_step, lanes.steps) == (2, 2)
    assert [lanes.rows_in_step(step) for step in range(2)] == [4, 3]
    assert [list(lanes.of_rank(rank, 2)) for rank in range(2)] == [[0], [1]]


@pytest.mark.parametrize("rows", [0, 1, 3, 7, 8, 9, 64, 65, 1000])
@pytest.mark.parametrize(("lanes", "batch_size"), [(1, 1), (4, 8), (8, 8), (8, 64)])
def test_lanes_hold_every_position_once_and_equally_many(rows: int, lanes: int, batch_size: int) -> None:
    dealt = Lanes(rows, lanes, batch_size)
    assert [position for lane in range(lanes) for position in dealt.interval(lane)] == list(range(rows))
    lengths = [len(dealt.interval(lane)) for lane in range(lanes)]
    assert max(lengths) - min(lengths) <= 1
    assert dealt.steps * dealt.rows_per_step >= max(lengths) > (dealt.steps - 1) * dealt.rows_per_step
    assert sum(dealt.rows_in_step(step) for step in range(dealt.steps)) == rows


def test_a_batch_size_that_lanes_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data\.batch_size: expected a multiple of data\.lanes = 8, got 100$"):
        Lanes(rows=10, lanes=8, batch_size=100)


def test_ranks_that_do_not_divide_the_lanes_are_refused() -> None:
    expected = r"^data\.lanes: expected a multiple of the number of ranks = 3, got 8$"
    with pytest.raises(ConfigError, match=expected):
        Lanes(rows=10, lanes=8, batch_size=64).of_rank(0, 3)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^seed: expected a number of at least 0, got -1$"):
        Shuffling(shuffle_rows=8, seed=-1, order="shuffled", lanes=4)


def test_first_buffers_of_long_lanes_are_staggered() -> None:
    shuffling = Shuffling(shuffle_rows=8, seed=0, order="shuffled", lanes=4)
    assert shuffling.buffers(lane=0, rows=20).tolist() == [0, 2, 10, 18, 20]
    assert shuffling.buffers(lane=3, rows=20).tolist() == [0, 8, 16, 20]
    assert shuffling.buffers(lane=0, rows=8).tolist() == [0, 8]  # fits one buffer: mixed whole


def test_a_buffer_is_mixed_as_a_uniform_permutation_is() -> None:
    # Spearman's footrule D = sum |p(i) - i| of a uniform permutation has mean (n^2 - 1) / 3 and variance
    # (n + 1)(2 n^2 + 7) / 45 (Diaconis and Graham 1977, table 1): five standard deviations either side.
    n = 1000
    order = Shuffling(n, seed=3, order="shuffled", lanes=1).permutation(epoch=0, lane=0, buffer=0, rows=n)
    assert sorted(order.tolist()) == list(range(n))
    footrule = np.abs(order - np.arange(n)).sum()
    mean, sd = (n**2 - 1) / 3, ((n + 1) * (2 * n**2 + 7) / 45) ** 0.5
    assert abs(footrule - mean) < 5 * sd
    # Neighbours that stay neighbours: about Poisson with mean 1; more than 10 has probability 1e-8.
    assert (np.diff(order) == 1).sum() <= 10


def test_every_epoch_lane_buffer_and_seed_has_its_own_order() -> None:
    n = 50
    shuffling = Shuffling(n, seed=0, order="shuffled", lanes=1)
    orders = [shuffling.permutation(*key, n) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    orders += [
        Shuffling(n, seed=1, order="shuffled", lanes=1).permutation(0, 0, 0, n),
        shuffling.sequence(n, 0),
        shuffling.sequence(n, 1),
    ]
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)
    assert shuffling.permutation(0, 0, 0, n).tolist() == orders[0].tolist()


def test_without_shuffle_the_order_is_the_files() -> None:
    shuffling = Shuffling(shuffle_rows=8, seed=0, order="file", lanes=4)
    assert shuffling.sequence(5, epoch=3).tolist() == [0, 1, 2, 3, 4]
    assert shuffling.permutation(epoch=3, lane=1, buffer=2, rows=4).tolist() == [0, 1, 2, 3]


def test_time_order_deals_groups_to_lanes_oldest_first() -> None:
    shuffling = Shuffling(shuffle_rows=8, seed=0, order="time", lanes=2)
    assert shuffling.sequence(5, epoch=0).tolist() == [0, 2, 4, 1, 3]
    assert shuffling.sequence(5, epoch=1).tolist() == [0, 2, 4, 1, 3]
    assert sorted(shuffling.permutation(0, 0, 0, 8).tolist()) == list(range(8))
