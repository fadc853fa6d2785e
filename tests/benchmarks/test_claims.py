"""Differences that the README and docs claim: recomputed from the recorded results."""

from benchmarks import RESULTS
from benchmarks.claims import METRICS, claims, difference_over_users
from sidrec.io.files import read_json
from sidrec.study.intervals import Difference, Differences

RECORDED: Differences = {
    "hid": {
        "sid": {"all": {"auc": Difference(difference=0.25, low=0.125, high=0.5, resamples=10), "gauc": None}},
    }
}


def test_a_recorded_difference_is_taken_as_it_is() -> None:
    assert difference_over_users(RECORDED, "sid", "hid") == RECORDED["hid"]["sid"]


def test_a_difference_recorded_the_other_way_round_is_negated() -> None:
    expected = {"all": {"auc": Difference(difference=-0.25, low=-0.5, high=-0.125, resamples=10), "gauc": None}}
    assert difference_over_users(RECORDED, "hid", "sid") == expected


def test_no_difference_without_one_of_them_as_reference() -> None:
    assert difference_over_users(RECORDED, "sid", "both") == {}


def test_the_recorded_claims_are_current_and_say_why_an_interval_is_missing() -> None:
    found = claims()
    assert read_json(RESULTS / "claims.json", "claims") == found
    for claim in found:
        intervals = {name for title, *_ in METRICS for name, value in claim[title].items() if value is None}  # type: ignore[attr-defined]
        assert intervals == set(claim["not_computed"])  # type: ignore[call-overload]
