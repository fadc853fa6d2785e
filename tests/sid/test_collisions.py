"""Collisions resolved by hand, against a slow reference, around older items, and on a million items."""

from itertools import combinations, permutations

import numpy as np
import pytest

from sidrec.config.learners import RandomCodesConfig
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from sidrec.sid.collisions import resolve
from sidrec.sid.learners.kmeans import ResidualKMeans
from sidrec.sid.learners.random_codes import RandomCodes


def decimals(ones: int = 3) -> ResidualKMeans:
    """Level 1 means 0 or 100, level 2 means 0, 1, 2, ..; the codebook of level 1 is filled up with far values."""
    first = np.full((ones, 1), 1e6, dtype=np.float32)
    first[:2, 0] = 0, 100
    return ResidualKMeans(np.stack([first, np.arange(ones, dtype=np.float32)[:, None]]), beam=1)


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def test_by_hand() -> None:
    """0.1, 0.2 and -0.1 are all nearest to 0: one of the two best stays, 0.2 goes to 1, the other to 2."""
    vectors = column(0.2, 0.1, -0.3, 102.0)
    codes = decimals().encode(vectors).codes_NL
    assert codes.tolist() == [[0, 0], [0, 0], [0, 0], [1, 2]]
    resolved = resolve(vectors, codes, decimals())
    # 0.1 is nearest to 0 and stays; (0.2 -> 1, -0.3 -> 2) costs 0.64 + 5.29, (0.2 -> 2, -0.3 -> 1) 3.24 + 1.69: cheaper
    assert resolved.codes_NL.tolist() == [[0, 2], [0, 0], [0, 1], [1, 2]]
    assert (resolved.moved, resolved.unresolved) == (2, 0)
    assert codes.tolist() == [[0, 0], [0, 0], [0, 0], [1, 2]]


def test_what_has_its_sid_alone_stays_and_blocks_it() -> None:
    vectors = column(0.0, 0.4, 1.1)
    resolved = resolve(vectors, decimals().encode(vectors).codes_NL, decimals())
    assert resolved.codes_NL.tolist() == [[0, 0], [0, 2], [0, 1]]


def test_more_items_than_codes_keep_sharing_and_are_counted() -> None:
    vectors = column(0.0, 0.1, 0.2, 0.3, 0.4)
    resolved = resolve(vectors, decimals().encode(vectors).codes_NL, decimals())
    assert (resolved.moved, resolved.unresolved) == (2, 2)
    assert resolved.codes_NL[:, 0].tolist() == [0] * 5
    assert sorted(resolved.codes_NL[:, 1].tolist()) == [0, 0, 0, 1, 2]
    assert resolved.codes_NL[3:, 1].tolist() in ([1, 2], [2, 1])  # those to whom it costs least


def test_older_items_never_move() -> None:
    """An old item on (0, 0), and a new one that fits better: the new one goes all the same."""
    resolved = resolve(column(0.0, 2.2), np.array([[0, 0], [0, 2]]), decimals(), taken_ML=np.array([[0, 0], [1, 1]]))
    assert resolved.codes_NL.tolist() == [[0, 1], [0, 2]]
    old = Catalog(np.array([5]), np.array([[0, 0]]), (3, 3))
    grown = old.extend(np.array([2, 9]), column(0.0, 0.1), decimals(), resolve_collisions=True)
    again = grown.extend(np.array([7, 8]), column(0.0, 100.0), decimals(), resolve_collisions=True)
    assert grown.codes_by_id(10)[5].tolist() == [0, 0]
    assert sorted(grown.codes_NL.tolist()) == [[0, 0], [0, 1], [0, 2]]
    for item in (2, 5, 9):
        assert again.codes_by_id(10)[item].tolist() == grown.codes_by_id(10)[item].tolist()
    assert again.codes_by_id(10)[7].tolist() == [0, 0]  # the prefix is full: it shares
    assert again.codes_by_id(10)[8].tolist() == [1, 0]
    plain = old.extend(np.array([2]), column(0.0), decimals())
    assert plain.codes_by_id(3)[2].tolist() == [0, 0]


def reference(vectors: np.ndarray, codes: np.ndarray, tokenizer: ResidualKMeans) -> tuple[float, list[int]]:
    """Total cost of the moves by trying every assignment, and who stays, item by item."""
    costs = tokenizer.last_level_costs(vectors, codes)
    stay, total = [], 0.0
    for prefix in np.unique(codes[:, :-1], axis=0):
        items = np.flatnonzero((codes[:, :-1] == prefix).all(axis=1))
        leaving = []
        for last in np.unique(codes[items, -1]):
            group = [int(item) for item in items if codes[item, -1] == last]
            best = min(group, key=lambda item: costs[item, last])
            stay.append(best)
            leaving += [item for item in group if item != best]
        free = [code for code in range(costs.shape[1]) if code not in codes[items, -1]]
        count = min(len(free), len(leaving))
        total += min(
            sum(float(costs[item, code]) for item, code in zip(who, where, strict=True))
            for who in permutations(leaving, count)
            for where in combinations(free, count)
        )
    return total, sorted(stay)


@pytest.mark.parametrize("seed", range(6))
def test_equals_trying_every_assignment(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    tokenizer = ResidualKMeans(rng.standard_normal((3, 5, 2)).astype(np.float32), beam=1)
    vectors = rng.standard_normal((30, 2)).astype(np.float32)
    codes = np.column_stack([rng.integers(0, 3, 30), rng.integers(0, 2, 30), rng.integers(0, 4, 30)])
    total, stay = reference(vectors, codes, tokenizer)
    whole = resolve(vectors, codes, tokenizer)
    moved = (whole.codes_NL != codes).any(axis=1)
    costs = tokenizer.last_level_costs(vectors, codes)
    assert costs[np.flatnonzero(moved), whole.codes_NL[moved, -1]].sum() == pytest.approx(total, rel=1e-5)
    assert not moved[stay].any()
    assert moved.sum() == whole.moved
    assert (whole.codes_NL[:, :-1] == codes[:, :-1]).all()
    assert whole.moved + whole.unresolved == 30 - len(stay)
    assert len(np.unique(whole.codes_NL, axis=0)) == 30 - whole.unresolved
    one_prefix_at_a_time = resolve(vectors, codes, tokenizer, most_costs=1)
    assert one_prefix_at_a_time.codes_NL.tolist() == whole.codes_NL.tolist()


def test_large_prefixes_are_served_in_rounds() -> None:
    vectors = column(0.2, 0.1, -0.3, 0.0)
    resolved = resolve(vectors, decimals().encode(vectors).codes_NL, decimals(), exact=0)
    # 0.0 stays; all ask for 1, 0.2 is nearest; then 2: 0.1; then nothing is free
    assert resolved.codes_NL[:, 1].tolist() == [1, 2, 0, 0]
    assert (resolved.moved, resolved.unresolved) == (2, 1)


def test_nothing_to_do_asks_for_nothing() -> None:
    codes = np.array([[0, 1], [1, 0]])
    tokenizer = RandomCodes.fit(column(1.0), RandomCodesConfig(levels=2, codebook_size=3), 0, None)  # type: ignore[arg-type]
    assert resolve(column(0.0, 1.0), codes, tokenizer).codes_NL.tolist() == codes.tolist()
    with pytest.raises(ContractError, match=r"expected a tokenizer whose last level .* got RandomCodes"):
        resolve(column(0.0, 1.0), codes[[0, 0]], tokenizer)


def test_a_million_items() -> None:
    """No loop over items: 16 ** 4 prefixes with about 15 items each for 64 codes."""
    rng = np.random.default_rng(0)
    tokenizer = ResidualKMeans(rng.standard_normal((5, 64, 2)).astype(np.float32), beam=1)
    codes = np.column_stack([rng.integers(0, 16, (1_000_000, 4)), rng.integers(0, 64, 1_000_000)])
    resolved = resolve(rng.standard_normal((1_000_000, 2)).astype(np.float32), codes, tokenizer)
    assert resolved.unresolved == 0
    assert len(np.unique(resolved.codes_NL @ [64**4, 64**3, 64**2, 64, 1])) == 1_000_000
    assert (resolved.codes_NL[:, :4] == codes[:, :4]).all()
