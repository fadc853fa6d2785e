import hashlib

import numpy as np
import pytest

from sidrec.data.item_tables import hashed_rows

WORD = 2**64


def slow_row(id_: int, feature: str, rows: int) -> int:
    """In Python's own integers."""
    if id_ < 0:
        return 0
    number = id_ + int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
    number = (number + 0x9E3779B97F4A7C15) % WORD
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % WORD
    return 1 + (number ^ (number >> 31)) % (rows - 1)


def test_the_mixer_is_splitmix64() -> None:
    # The generator's first output from seed 0, as its authors give it.
    assert slow_row(-int.from_bytes(hashlib.blake2b(b"s1", digest_size=8).digest(), "little") % WORD, "s1", 2**64) == (
        1 + 0xE220A8397B1DCDAF % (2**64 - 1)
    )


@pytest.mark.parametrize("rows", [2, 3, 101, 1_000_000])
@pytest.mark.parametrize("feature", ["hid", "s12"])
def test_rows_equal_a_slow_reference(feature: str, rows: int) -> None:
    ids = np.array([-1, 0, 1, 2, 9999, 81_918_191, 2**40])
    found = hashed_rows(ids, feature, rows)
    assert found.tolist() == [slow_row(id_, feature, rows) for id_ in ids.tolist()]
    assert found.dtype == np.int64
    assert found[0] == 0
    assert (found[1:] >= 1).all()
    assert (found[1:] < rows).all()


def test_collisions_are_as_frequent_as_chance_has_them_and_differ_by_feature() -> None:
    ids, rows = np.arange(10_000), 1001
    by_feature = {feature: hashed_rows(ids, feature, rows) for feature in ("s1", "s2")}
    for found in by_feature.values():
        counts = np.bincount(found, minlength=rows)[1:]
        assert counts.min() > 0
        assert counts.var() == pytest.approx(10, rel=0.2)  # a Poisson's, of mean 10
    together = (by_feature["s1"][:5000] == by_feature["s1"][5000:]) & (
        by_feature["s2"][:5000] == by_feature["s2"][5000:]
    )
    assert not together.any()


def test_no_code_of_a_composed_id_is_lost_to_a_round_number_of_rows() -> None:
    pairs = np.arange(50) * 10_000 + 7  # the same last code; a plain modulo by 100 would give one row
    assert len(np.unique(hashed_rows(pairs, "s12", 101))) > 30
