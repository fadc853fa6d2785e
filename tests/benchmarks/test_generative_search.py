"""Trie, model and beam search against slow truths."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks.generative.model import SidTransformer, Trie, search
from benchmarks.generative.result import Size

CODEBOOKS = (3, 4, 5)


@pytest.fixture
def catalog_codes() -> np.ndarray:
    """25 of the 60 possible SIDs, some of them several times."""
    random = np.random.default_rng(0)
    every = np.array(list(product(*map(range, CODEBOOKS))))
    return every[random.choice(60, size=25, replace=False)][random.integers(0, 25, size=40)]


@pytest.fixture
def model() -> SidTransformer:
    torch.manual_seed(0)
    return SidTransformer(CODEBOOKS, Size(2, 16, 2, 32), history=6, dropout=0.5).eval()


@pytest.fixture
def histories() -> tuple[torch.Tensor, torch.Tensor]:
    """Three histories of 2, 5 and 1 items."""
    random = np.random.default_rng(1)
    codes_BTL = np.stack([random.integers(0, size, size=(3, 5)) for size in CODEBOOKS], axis=2)
    return torch.from_numpy(codes_BTL), torch.tensor([2, 5, 1])


def test_trie_of_a_hand_made_catalog() -> None:
    trie = Trie.of(np.array([[1, 0], [0, 2], [1, 3], [0, 2], [1, 1]]))
    # sorted SIDs: 02 10 11 13
    assert trie.sid_N.tolist() == [1, 0, 3, 0, 2]
    assert trie.group_S.tolist() == [2, 1, 1, 1]
    assert [begin.tolist() for begin in trie.begin] == [[0, 2], [0, 1, 4]]
    assert [code.tolist() for code in trie.code] == [[0, 1], [2, 0, 1, 3]]
    owner_C, child_C = trie.children(1, torch.tensor([1, 0, 1]))
    assert owner_C.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert child_C.tolist() == [1, 2, 3, 0, 1, 2, 3]


def log_probability(model: SidTransformer, history_TL: torch.Tensor, sid_L: np.ndarray) -> float:
    """Of one SID after one history, from the training pass: its last position is the prediction."""
    targets_TL = torch.cat([history_TL[1:], torch.from_numpy(sid_L)[None]])
    real_T = torch.arange(len(history_TL)) == len(history_TL) - 1
    logits = model(history_TL[None], targets_TL[None], real_T[None])
    return sum(functional.log_softmax(level[0], 0)[code].item() for level, code in zip(logits, sid_L, strict=True))


def test_a_wide_beam_finds_every_sid_in_the_order_of_its_probability(
    model: SidTransformer, catalog_codes: np.ndarray, histories: tuple[torch.Tensor, torch.Tensor]
) -> None:
    codes_BTL, length_B = histories
    trie, sids_SL = Trie.of(catalog_codes), np.unique(catalog_codes, axis=0)
    found = search(model, trie, codes_BTL, length_B, beam=len(sids_SL))
    for row, length in enumerate(length_B):
        slow_S = np.array([log_probability(model, codes_BTL[row, :length], sid_L) for sid_L in sids_SL])
        assert found.sid_BW[row].tolist() == np.argsort(-slow_S).tolist()
        np.testing.assert_allclose(found.score_BW[row], np.sort(slow_S)[::-1], rtol=1e-4)


def test_a_narrow_beam_follows_the_best_prefixes(
    model: SidTransformer, catalog_codes: np.ndarray, histories: tuple[torch.Tensor, torch.Tensor]
) -> None:
    codes_BTL, length_B = histories
    sids_SL = np.unique(catalog_codes, axis=0)
    found = search(model, Trie.of(catalog_codes), codes_BTL, length_B, beam=2)
    for row, length in enumerate(length_B):
        history_TL, beams = codes_BTL[row, :length], [()]
        for depth in range(len(CODEBOOKS)):
            longer = {tuple(sid_L[: depth + 1]) for sid_L in sids_SL if tuple(sid_L[:depth]) in beams}
            beams = sorted(longer, key=lambda prefix: -prefix_probability(model, history_TL, prefix))[:2]
        assert [tuple(sids_SL[sid]) for sid in found.sid_BW[row]] == beams


def prefix_probability(model: SidTransformer, history_TL: torch.Tensor, prefix: tuple[int, ...]) -> float:
    """A prefix's probability does not depend on what follows, so that any codes may follow."""
    sid_L = np.array([*prefix, *[0] * (len(CODEBOOKS) - len(prefix))])
    targets_TL = torch.cat([history_TL[1:], torch.from_numpy(sid_L)[None]])
    real_T = torch.arange(len(history_TL)) == len(history_TL) - 1
    logits = model(history_TL[None], targets_TL[None], real_T[None])
    return sum(functional.log_softmax(logits[n][0], 0)[code].item() for n, code in enumerate(prefix))


def test_beams_without_a_sid_score_minus_infinity(model: SidTransformer) -> None:
    codes_NL = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0]])
    history_BTL = torch.zeros(2, 1, 3, dtype=torch.int64)
    found = search(model, Trie.of(codes_NL), history_BTL, torch.ones(2, dtype=torch.int64), beam=10)
    for sid_W, score_W in zip(*found, strict=True):
        assert sorted(sid_W[score_W > -torch.inf].tolist()) == [0, 1, 2]


def test_a_position_does_not_depend_on_later_ones(
    model: SidTransformer, histories: tuple[torch.Tensor, torch.Tensor]
) -> None:
    codes_BTL, _ = histories
    real_BT = torch.zeros(3, 4, dtype=torch.bool)
    real_BT[:, 1] = True
    before = model(codes_BTL[:, :4], codes_BTL[:, 1:], real_BT)
    changed_BTL = codes_BTL.clone()
    changed_BTL[:, 3:] = (changed_BTL[:, 3:] + 1) % 3  # items after the target of position 1
    after = model(changed_BTL[:, :4], changed_BTL[:, 1:], real_BT)
    changed_BTL[:, 2, 2] = (changed_BTL[:, 2, 2] + 1) % 3  # the last code of that target itself
    without_last = model(changed_BTL[:, :4], changed_BTL[:, 1:], real_BT)
    changed_BTL[:, 1] = (changed_BTL[:, 1] + 1) % 3  # its history
    other = model(changed_BTL[:, :4], changed_BTL[:, 1:], real_BT)
    for level in range(3):
        torch.testing.assert_close(before[level], after[level])
        torch.testing.assert_close(before[level], without_last[level])
        assert not torch.allclose(before[level], other[level])
