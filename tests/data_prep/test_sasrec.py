"""SASRec: what a position sees, windows, the sampled softmax, and that training learns an order."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from data_prep.behavior import SasRecSettings, check_next_item, hits_of
from data_prep.item_pairs import Sequences
from data_prep.sasrec import SasRec, Windows, sampled_softmax, train_sasrec
from sidrec.schema import ContractError

SMALL = SasRecSettings(width=16, length=6, epochs=25, batch_events=128, negatives=64, lr=1e-2)


def ring(users: int = 120, items: int = 30, seed: int = 0) -> Sequences:
    """Users who start anywhere and go on to the next item, around a ring."""
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 9, users)
    starts = random.integers(0, items, users)
    walks = [(start + np.arange(length)) % items for start, length in zip(starts, lengths, strict=True)]
    return Sequences(np.arange(items) + 1, np.concatenate(walks), np.append(0, np.cumsum(lengths)))


def model_of(items: int, **settings: Any) -> SasRec:
    torch.manual_seed(0)
    shape = {"width": 8, "blocks": 2, "heads": 2, "length": 6, "dropout": 0.0} | settings
    return SasRec(items, **shape).eval()


def test_a_position_sees_itself_and_earlier_ones_only() -> None:
    model = model_of(9)
    sequence = torch.tensor([[9, 1, 2, 3, 4]])
    hidden = model(sequence)
    later = model(torch.tensor([[9, 1, 2, 7, 8]]))
    earlier = model(torch.tensor([[9, 5, 2, 3, 4]]))
    assert torch.equal(hidden[:, :3], later[:, :3])
    assert not torch.allclose(hidden[:, 3], later[:, 3])
    assert not torch.allclose(hidden[:, 4], earlier[:, 4])


def test_padding_at_the_end_changes_nothing() -> None:
    model = model_of(9)
    alone = model(torch.tensor([[9, 1, 2]]))
    padded = model(torch.tensor([[9, 1, 2, 9, 9], [9, 3, 4, 5, 6]]))
    torch.testing.assert_close(padded[:1, :3], alone)


def test_windows_make_every_event_a_target_once() -> None:
    sequences = Sequences(np.arange(10), np.array([5, 6, 7, 8, 9, 1, 2, 3]), np.array([0, 5, 6, 8]))
    windows = Windows.of(sequences, 2)
    found = []
    for window in range(len(windows.length_W)):
        inputs, real, targets = windows.inputs_and_targets(np.array([window]), start=10)
        assert real.all()
        found.append((inputs[0].tolist(), targets.tolist()))
    assert found == [([10, 5], [5, 6]), ([6, 7], [7, 8]), ([8], [9]), ([10], [1]), ([10, 2], [2, 3])]
    inputs, real, targets = windows.inputs_and_targets(np.array([3, 1, 0]), start=10)
    assert inputs.tolist() == [[10, 10], [6, 7], [10, 5]]
    assert real.tolist() == [[True, False], [True, True], [True, True]]
    assert targets.tolist() == [1, 7, 8, 5, 6]


def test_batches_hold_every_window_once_and_no_more_than_asked() -> None:
    windows = Windows.of(ring(), 6)
    batches = list(windows.batches(20, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == list(range(len(windows.length_W)))
    assert max(len(batch) * windows.length_W[batch].max() for batch in batches) <= 20


def test_every_item_as_negative_is_the_exact_softmax() -> None:
    model = model_of(7)
    torch.nn.init.normal_(model.items.weight)
    hidden, targets = torch.randn(5, 8), torch.tensor([0, 6, 3, 3, 1])
    loss = sampled_softmax(hidden, targets, torch.arange(7), model, 7)
    torch.testing.assert_close(loss, functional.cross_entropy(hidden @ model.items.weight[:7].T, targets))


def test_sampled_negatives_stand_for_all_on_average() -> None:
    model = model_of(50)
    torch.nn.init.normal_(model.items.weight, std=0.3)
    hidden, targets = torch.randn(4, 8), torch.tensor([0, 49, 20, 7])
    exact = sampled_softmax(hidden, targets, torch.arange(50), model, 50)
    drawn = torch.randint(50, (20_000,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sampled_softmax(hidden, targets, drawn, model, 50), exact, rtol=0, atol=0.02)


def test_learns_the_ring_and_beats_popularity() -> None:
    found = check_next_item(ring(), SMALL)
    assert found is not None
    assert found.users == 120
    assert found.sasrec > 0.95 > 0.5 > found.popularity


def test_same_seed_same_bits_and_torch_s_own_state_is_left_alone() -> None:
    settings = SasRecSettings(width=8, length=6, epochs=2, batch_events=64, negatives=8)
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, losses = train_sasrec(ring(), settings, "first")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(6)
    again, losses_again = train_sasrec(ring(), settings, "again")
    assert losses == losses_again
    assert torch.equal(first.items.weight, again.items.weight)
    other, _ = train_sasrec(ring(), SasRecSettings(**{**vars(settings), "seed": 1}), "other")
    assert not torch.equal(first.items.weight, other.items.weight)


def test_one_item_only() -> None:
    alone = Sequences(np.array([4]), np.zeros(3, np.int64), np.array([0, 3]))
    model, losses = train_sasrec(alone, SMALL, "alone")
    assert torch.isfinite(model.items.weight).all()
    assert losses[-1] == 0
    assert check_next_item(alone, SMALL) is None  # the user had had it before


def test_hits_leave_out_what_the_user_had_and_break_ties_by_item() -> None:
    scores = np.array([np.arange(20, 0, -1), np.zeros(20), np.zeros(20)], dtype=np.float32)
    had = [np.array([0]), np.array([], dtype=np.int64), np.array([], dtype=np.int64)]
    assert hits_of(scores, np.array([10, 9, 10]), had) == 2  # ten others ahead of the last one only


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("width", 0),
        ("heads", 3),
        ("heads", 0),
        ("length", 0),
        ("epochs", 0),
        ("dropout", 1.0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("batch_events", 49),
        ("negatives", 0),
        ("seed", -1),
        ("threads", 0),
    ],
)
def test_settings_that_make_no_sense(flag: str, value: float) -> None:
    settings: dict[str, Any] = {flag: value}
    with pytest.raises(ContractError, match=f"--{flag.replace('_', '-')}: expected .*, got {value}"):
        SasRecSettings(**settings).check()
