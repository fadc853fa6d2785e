"""Sampled negatives: who they are for, what they are drawn from, and that novelty does not give labels away."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_prep.draws import uniforms
from data_prep.negatives import Pools, Sampler, places
from sidrec import schema
from sidrec.errors import ContractError
from tests.data_prep.event_lists import DAY, Event, make_log


def purchases(users: int = 150, items: int = 120, per_user: int = 20, days: int = 400, seed: int = 1) -> list[Event]:
    """Users buy distinct items by Zipf popularity; an item can be bought from a day of its own on."""
    random = np.random.default_rng(seed)
    birth = random.integers(0, days * 3 // 4, items)
    log = []
    for user in range(1, users + 1):
        weight = 1 / np.arange(1, items + 1) ** 0.7
        for item in random.choice(items, per_user, replace=False, p=weight / weight.sum()):
            day = random.integers(birth[item], days)
            log.append(Event(user, int(item) + 1, int(day) * DAY, 1))
    return log


def test_every_negative_belongs_to_a_positive_and_is_new_to_its_user(tmp_path: Path) -> None:
    rows = make_log(purchases(), tmp_path / "out", implicit=True, negatives=2)
    moments = Counter((row["user_id"], row["timestamp"]) for row in rows if row["label"] == 1)
    drawn = Counter((row["user_id"], row["timestamp"]) for row in rows if row["label"] == 0)
    assert all(count <= 2 * moments[moment] for moment, count in drawn.items())
    given_up = schema.load_manifest(tmp_path / "out" / "log").protocol["negatives"]["given_up"]  # type: ignore[index]
    assert sum(drawn.values()) == 2 * sum(moments.values()) - given_up
    assert given_up < 0.01 * sum(moments.values())
    taken: dict[tuple[int, int], int] = {}
    for row in rows:
        if row["label"] == 1:
            taken[row["user_id"], row["item_id"]] = row["timestamp"]
    for row in rows:
        if row["label"] == 0:
            assert taken.get((row["user_id"], row["item_id"]), np.inf) > row["timestamp"]


def test_partition_size_changes_nothing(tmp_path: Path) -> None:
    log = purchases()
    assert make_log(log, tmp_path / "one", implicit=True) == make_log(
        log, tmp_path / "many", implicit=True, partition_rows=100
    )


def test_seed_decides(tmp_path: Path) -> None:
    log = purchases(users=20)
    first, again, other = (
        make_log(log, tmp_path / name, implicit=True, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert first != other


def test_novelty_does_not_give_the_label_away(tmp_path: Path) -> None:
    """Without launches an item's first row is a positive nearly always; with them about as often as any row."""
    log = purchases(users=400, items=600)
    protocols = []
    for name, flags in (("without", {"launch_draws": 0.0, "floor_weight": 0.0}), ("with", {})):
        make_log(log, tmp_path / name, implicit=True, partition_rows=100_000, **flags)
        protocols.append(schema.load_manifest(tmp_path / name / "log").protocol)
    without, with_launches = (protocol["novelty"]["never_shown"]["positive_rate"] for protocol in protocols)  # type: ignore[index]
    assert without > 0.99
    assert with_launches == pytest.approx(0.5, abs=0.1)


def test_rows_of_one_moment_lie_in_an_order_without_labels(tmp_path: Path) -> None:
    rows = make_log(purchases(), tmp_path / "out", implicit=True)
    firsts = [
        row["label"] for row, before in zip(rows[1:], rows, strict=False) if row["timestamp"] > before["timestamp"]
    ]
    assert np.mean(firsts) == pytest.approx(0.5, abs=0.15)


def pools(rows: int, *, floor_weight: float, launch_draws: float, **ranges: int) -> Pools:
    """The same ranges of places for each row."""
    return Pools(
        **{name: np.full(rows, value) for name, value in ranges.items()},
        floor_weight=floor_weight,
        launch_draws=launch_draws,
    )


def test_places_are_drawn_by_weight() -> None:
    """2 fresh items share 0.5 * 2 / 4 = 1/4 of the draws; the rest goes to 4 positives and 4 floors of weight 1."""
    rows = 80_000
    ranges = {"fresh_from": 2, "fresh": 2, "popular_from": 100, "popular": 4, "launched": 4}
    drawn = places((np.arange(rows) + 0.5) / rows, pools(rows, floor_weight=1.0, launch_draws=0.5, **ranges))
    events, launches = (Counter(place_N.tolist()) for place_N in drawn)
    eighth = rows * 3 // 4 // 8
    assert events == {-1: rows - 4 * eighth, 100: eighth, 101: eighth, 102: eighth, 103: eighth}
    assert launches == {-1: 4 * eighth, 0: eighth, 1: eighth, 2: eighth + 10_000, 3: eighth + 10_000}


def test_nothing_to_draw_from_is_refused(tmp_path: Path) -> None:
    """The only item is the one that each user has just taken."""
    log = [Event(user, 1, 5 * DAY + user, 1) for user in range(1, 11)]
    with pytest.raises(ContractError, match="10 of 10 negatives found no item that their user had not taken"):
        make_log(log, tmp_path / "out", implicit=True)


def test_launch_lies_in_the_window_before_the_first_positive() -> None:
    items = 5_000
    first = pa.RecordBatch.from_pydict({"item_id": pa.array(range(items), pa.int32()), "first": [100 * DAY] * items})
    day_N = Sampler(1, 0.5, 1.4, window_days=30, seed=5)._launch_days(first).column("day").to_numpy()
    assert day_N.min() == 70
    assert day_N.max() == 99
    assert day_N.mean() == pytest.approx(84.5, abs=0.5)


def test_uniforms_are_uniform_and_depend_on_every_key() -> None:
    values = uniforms(0, np.arange(100_000), 3)
    assert values.mean() == pytest.approx(0.5, abs=0.005)
    assert np.var(values) == pytest.approx(1 / 12, abs=0.002)
    assert abs(np.corrcoef(values, uniforms(0, np.arange(100_000), 4))[0, 1]) < 0.02
    assert abs(np.corrcoef(values, uniforms(1, np.arange(100_000), 3))[0, 1]) < 0.02
