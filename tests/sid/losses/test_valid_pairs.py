"""Masks and overlaps by hand and by double loop."""

import torch

from sidrec.sid.losses.repulsion import repelled_once, shared_levels, valid_pairs
from tests.sid.losses.tiny_network import items


def test_mask_by_hand() -> None:
    """Item 7 stands at 0, 2 and 4; 0-3, 1-4 and 2-5 are partners."""
    assert valid_pairs(torch.tensor([7, 8, 7, 9, 7, 6]), partners=3).int().tolist() == [
        [0, 1, 0, 0, 0, 1],
        [1, 0, 1, 1, 0, 1],
        [0, 1, 0, 1, 0, 0],
        [0, 1, 1, 0, 1, 1],
        [0, 0, 0, 1, 0, 1],
        [1, 1, 0, 1, 1, 0],
    ]


def test_without_pairs_only_the_same_item_is_masked() -> None:
    assert valid_pairs(torch.tensor([7, 8, 7]), None).int().tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_an_item_in_the_place_of_its_unknown_partner_is_masked() -> None:
    batch = items([7, 8, 7, 8], partners=2, has_partner=[False, False])
    assert repelled_once(batch, True).nonzero().tolist() == [[0, 1], [0, 3], [1, 2], [2, 3]]


def test_without_the_mask_every_two_places_are_a_pair() -> None:
    assert repelled_once(items([7, 7, 8], None), False).nonzero().tolist() == [[0, 1], [0, 2], [1, 2]]


def test_shared_levels_equals_the_slow_loop() -> None:
    codes_BL = torch.randint(3, (20, 5), generator=torch.Generator().manual_seed(0))
    expected = [[sum(a == b for a, b in zip(x, y, strict=True)) for y in codes_BL] for x in codes_BL]
    assert shared_levels(codes_BL).tolist() == expected


def test_codes_of_large_codebooks_are_told_apart() -> None:
    assert shared_levels(torch.tensor([[0], [256], [65_536]])).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
