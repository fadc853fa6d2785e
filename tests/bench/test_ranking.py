"""Ties, identical and dropped plans in the headline, the terminal's table and the result."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sidrec.bench.ranking import bench_table, fastest_first, headline, tied_with_first
from sidrec.bench.result import PHASES, PlanMeasurement, Timing, load_bench
from sidrec.bench.rounds import Record, Rounds, hopeless
from sidrec.bench.trial import StepCounts, Visit
from sidrec.parallel.process_group import joined_ranks
from tests.bench.bench_results import LONG, TYPES, made_up, plan, prediction, result_of

EMPTY = {"version": 1, "world": 4, "local_world": 4, "device": "cpu"}


def _plans(rounds: Mapping[str, Sequence[float]], spread: float = 0.5) -> list[PlanMeasurement]:
    """Plans of these medians by round; p10 and p90 are `spread` ms around the middle round."""
    made = []
    for name, each in rounds.items():
        middle = sorted(each)[len(each) // 2]
        timings = dict.fromkeys(PHASES, Timing(middle - spread, middle, middle + spread))
        made.append(plan(name, middle, rounds=list(each), timings=timings, plan={**EMPTY, "tables": {name: {}}}))
    return fastest_first(result_of(*made))


STEADY = [10.0, 10.2, 9.9, 10.1, 10.0]


@pytest.mark.parametrize(
    ("rounds", "tied"),
    [
        ({"a": STEADY, "b": [each + 3 for each in STEADY]}, ["a"]),
        ({"a": STEADY, "b": [each * 1.01 for each in STEADY]}, ["a"]),  # slower in each round, by little
        ({"a": STEADY, "b": STEADY[::-1]}, ["a", "b"]),
        ({"a": STEADY, "b": STEADY}, ["a", "b"]),
        ({"a": STEADY, "b": [11.0, 11.0, 9.0, 11.0, 9.0]}, ["a", "b"]),
        ({"a": STEADY, "b": [9.8, 10.3, 9.8, 10.3, 10.4]}, ["a", "b"]),
        ({"a": [40.0, 10.0, 80.0], "b": [44.0, 11.0, 88.0]}, ["a"]),  # the machine's slow rounds slow both
        ({"a": [10.0, 11.0], "b": [10.5, 10.5]}, ["b", "a"]),
        ({"a": [10.0], "b": [10.9]}, ["a", "b"]),  # one round: their steps overlap
        ({"a": [10.0], "b": [11.1]}, ["a"]),
        ({"a": STEADY, "b": [10.9]}, ["a", "b"]),  # they share one round
        ({"a": STEADY, "b": [9.0, 10.3, 30.0, 10.4, 10.3], "c": [each + 9 for each in STEADY]}, ["a", "b"]),
        ({"a": STEADY}, ["a"]),
    ],
)
def test_a_fastest_plan_is_named_only_where_no_other_ties(rounds: dict[str, list[float]], tied: list[str]) -> None:
    ranked = _plans(rounds)
    assert [each.name for each in tied_with_first(ranked)] == tied
    lead = headline(ranked)[0]
    assert lead.startswith(f"Fastest: {tied[0]}," if len(tied) == 1 else f"Tie of {len(tied)} plans: {tied[0]},")
    assert all(f" {name} (" in lead for name in tied[1:])
    assert (" Next: " in lead) == (len(tied) < len(rounds))


@pytest.mark.parametrize(("rounds", "chance"), [(1, "100%"), (2, "50%"), (3, "25%"), (4, "12%"), (5, None), (8, None)])
def test_few_rounds_are_doubted(rounds: int, chance: str | None) -> None:
    ranked = _plans({"a": [10.0] * rounds, "b": [12.0] * rounds})
    doubts = [line for line in headline(ranked) if line.startswith("Only ")]
    assert [f"in {chance} of benches" in line for line in doubts] == ([] if chance is None else [True])
    assert not [line for line in headline(ranked[:1]) if line.startswith("Only ")]


@pytest.mark.parametrize(
    ("steps", "dropped"),
    [
        ({"a": [40.0], "b": [6500.0]}, ["b"]),
        ({"a": [40.0], "b": [200.0]}, []),  # five times is not more than five times
        ({"a": [40.0], "b": [200.1]}, ["b"]),
        ({"a": [40.0, 39.0, 41.0], "b": [6500.0, 6500.0, 199.0]}, []),  # one step may have been what it takes
        ({"a": [40.0, 39.0, 6500.0], "b": [300.0, 300.0, 250.0]}, ["b"]),
        ({"a": [40.0]}, []),
        ({}, []),
        ({"a": [5.0], "b": [5.0], "c": [26.0], "d": [24.0]}, ["c"]),
        ({"z": [100.0], "a": [1.0], "b": [4.0], "c": [50.0]}, ["z", "c"]),
        ({"a": [0.001], "b": [0.006]}, ["b"]),
        ({"a": [7.0], "b": [float("inf")]}, ["b"]),
        ({f"{n}": [10.0 + n] for n in range(20)}, []),
        ({f"{n}": [10.0 * 2**n] for n in range(5)}, ["3", "4"]),
    ],
)
def test_hopeless_plans_are_dropped_by_their_first_round(steps: dict[str, list[float]], dropped: list[str]) -> None:
    found = hopeless(steps)
    assert list(found) == dropped
    assert all(found[name].startswith("after 1 round: ") for name in dropped)


def test_the_message_of_a_dropped_plan() -> None:
    said = hopeless({"a": [40.0], "b": [6500.0]})["b"]
    assert said == "after 1 round: its fastest step took 6,500 ms, 162.5 times the median of a"


class _Plan:
    """Takes the same time in each of two steps, round after round."""

    def __init__(self, milliseconds: float) -> None:
        self._milliseconds = milliseconds

    def visit(self, steps: StepCounts) -> Visit:
        return Visit([0.5, 0.5], dict.fromkeys(PHASES, [self._milliseconds] * 2), [1.0, 1.0], 8.0, 100)


@pytest.mark.parametrize(
    ("rounds", "keep_all", "visits"), [(2, False, [2, 2, 1]), (2, True, [2, 2, 2]), (1, False, [1, 1, 1])]
)
def test_a_dropped_plan_keeps_its_first_round(
    rounds: int, keep_all: bool, visits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    times = {"auto": 10.0, "row_wise": 49.0, "data_parallel": 51.0}
    records = {name: Record(name, {"tables": {name: {}}}, None, None) for name in times}

    def trial(name: str) -> Any:
        return _Plan(times[name])

    with joined_ranks() as ranks:
        Rounds(trial, records, StepCounts(0, 2), True, lambda: None, ranks, keep_all).run(rounds)
    found = [record.measurement() for record in records.values()]
    assert [len(each.rounds) for each in found] == visits
    dropped = visits[2] < rounds
    assert [each.dropped is not None for each in found] == [False, False, dropped]
    assert ("data_parallel dropped after 1 round: " in capsys.readouterr().out) == dropped


def test_dropped_and_identical_plans_are_shown(tmp_path: Path) -> None:
    message = "after 1 round: 900 ms a step, 90.0 times that of auto"
    auto, slow = _plans({"auto": STEADY, "data_parallel": [900.0]})
    auto = dataclasses.replace(auto, aliases=["torchrec", "table_wise"])
    slow = dataclasses.replace(slow, dropped=message)
    result = result_of(slow, auto)
    result = dataclasses.replace(result, hardware={**result.hardware, "world": 2})
    lead, *others = headline(fastest_first(result))
    assert lead.startswith("Fastest: auto = torchrec = table_wise, 10.0 ms")
    assert "Next" not in lead
    assert others == ["Dropped after 1 round, since far slower than the fastest: data_parallel (900 ms)."]
    text = bench_table(result)
    assert re.search(r"\nauto = torchrec = table_wise +10.00 ", text)
    assert "90.00, dropped" in text
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(result.as_json()))
    assert load_bench(file) == result


@pytest.mark.parametrize(
    ("step", "longer"),
    [(11.0, "10% longer"), (29.0, "190% longer"), (30.0, "3.0 times as long"), (1250.0, "125.0 times")],
)
def test_the_next_plan_is_compared_in_readable_figures(step: float, longer: str) -> None:
    ranked = _plans({"a": [10.0] * 5, "b": [step] * 5})
    assert f" Next: b, {longer}" in headline(ranked)[0]


def test_a_bench_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    raw = made_up(TYPES).as_json()
    for each in raw["plans"]:
        del each["aliases"], each["dropped"]
    (tmp_path / "bench.json").write_text(json.dumps(raw))
    assert load_bench(tmp_path / "bench.json") == made_up(TYPES)


@pytest.mark.parametrize("columns", [100, 80, 60])
@pytest.mark.parametrize("names", [TYPES, [*TYPES, LONG], ["a"]])
def test_the_table_fits_the_screen(names: list[str], columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = made_up(names)
    slowest = dataclasses.replace(result.plans[0], aliases=["auto", "torchrec"], default=prediction(123456.78))
    text = bench_table(dataclasses.replace(result, plans=[slowest, *result.plans[1:]]))
    assert all(len(line) <= columns for line in text.splitlines()), text
    assert "123456.78" in text
    for each in result.plans:
        assert f"{each.timings['step'].p50:.2f}" in text
