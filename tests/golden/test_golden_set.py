"""The comparison sees what it must, and on other machines only that."""

import numpy as np
import pytest

from tests.golden.files import array
from tests.golden.golden_set import EXACT, LOSSES, differences, tolerance

GOLDEN = {"loss": [0.5, 0.25], "rows": 3, "nested": {"name": "a"}}


@pytest.mark.parametrize(
    ("found", "place"),
    [
        ({**GOLDEN, "loss": [0.5, np.nextafter(0.25, 1).item()]}, "loss[1]"),
        ({**GOLDEN, "loss": [0.5]}, "loss"),
        ({**GOLDEN, "rows": 3.0}, "rows"),
        ({**GOLDEN, "nested": {}}, "nested"),
        ({**GOLDEN, "more": 1}, "more"),
    ],
)
def test_a_difference_is_found_by_its_place(found: dict, place: str) -> None:
    (line,) = differences(GOLDEN, found, EXACT)
    assert place in line


def test_other_machines_may_round_otherwise() -> None:
    assert differences(GOLDEN, {**GOLDEN, "loss": [0.5, 0.25 * (1 + 1e-6)]}, LOSSES) == []
    assert len(differences(GOLDEN, {**GOLDEN, "loss": [0.5, 0.25 * (1 + 1e-4)]}, LOSSES)) == 1
    assert len(differences(GOLDEN, {**GOLDEN, "rows": 4}, LOSSES)) == 1


def test_digests_count_where_numbers_are_exact() -> None:
    values = np.linspace(0, 1, 10, dtype=np.float32)
    golden, found = array(values), array(np.nextafter(values, 2, dtype=np.float32))
    assert differences(golden, found, EXACT) != []
    assert differences(golden, found, LOSSES) == []
    assert differences(array(np.arange(3)), array(np.array([0, 2, 1])), LOSSES) != []  # ids are exact everywhere


def test_exact_on_the_same_machine_only() -> None:
    assert tolerance({"model": "1"}, {"model": "1"}, LOSSES) == EXACT
    assert tolerance({"model": "1"}, {"model": "2"}, LOSSES) == LOSSES
