"""The report on several catalogs: its figures by hand, its intervals against a slow truth, and what it refuses.

U users.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.generative.entries import read_entries
from benchmarks.generative.evaluation import metrics_at
from benchmarks.generative.report import differences, main, report
from benchmarks.generative.result import Ranks, load_ranks, ranks_path, save_ranks
from sidrec.metrics.resampling import SEED, multiplicities
from sidrec.schema import ContractError
from sidrec.study.intervals import RESAMPLES

USERS, BEAM = 60, 50
RESULT: dict[str, Any] = {
    "settings": {"protocol": "log-split", "size": "small", "epochs": 8, "beam": BEAM, "token_weights": False},
    "data": "data/toy",
    "conditions": {"commit": "abc", "cpu": "a CPU", "cores": 2},
    "test": {
        "users": USERS,
        "users_without_history": 7,
        "targets_never_liked_before": 5,
        "targets_with_shared_sid": 15,
        "other_splits_reach_into_test_time": False,
    },
    "training": {"best": 6, "sequences": {"training": 90, "validation": 9, "test": USERS}},
    "parameters": 1000,
    "seconds": {"train": {"wall": 30.0, "cpu": 20.0}, "search": {"wall": 4.0, "cpu": 2.4}},
}


def write(folder: Path, stem: str, seed: int = 0, good: float = 0.5, ranks: bool = True, shared: int = 1) -> Path:
    """A result whose targets are found with the probability `good`, all SIDs shared by so many items."""
    random = np.random.default_rng([seed, len(stem)])
    found_U = random.random(USERS) < good
    rank_U = np.where(found_U, random.integers(1, BEAM + 1, USERS), 0).astype(np.int32)
    group_U = np.full(USERS, shared, dtype=np.int32)
    result = deepcopy(RESULT) | {"settings_hash": f"hash of {stem}"}
    result["settings"]["seed"] = seed
    result["catalog"] = {"path": "catalogs/x", "fingerprint": stem.partition("-seed")[0], "items": 100}
    popularity = {name: 0.01 for name in metrics_at(rank_U, np.ones(USERS), BEAM)}
    result["metrics"] = {
        "item": metrics_at(rank_U, 1 / group_U, BEAM),
        "sid": metrics_at(rank_U, np.ones(USERS), BEAM),
        "popularity_item": popularity,
    }
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(result))
    if ranks:
        save_ranks(path, Ranks(np.arange(USERS) + 10, rank_U, group_U), result["settings_hash"])
    return path


def change(path: Path, changed: Callable[[dict[str, Any]], None]) -> None:
    result = json.loads(path.read_text())
    changed(result)
    path.write_text(json.dumps(result))


def rows(text: str) -> dict[str, list[list[str]]]:
    """First cell -> its lines of all tables."""
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("| ") and "---" not in line:
            first, *rest = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(first, []).append(rest)
    return found


def item(path: Path, name: str) -> float:
    return float(json.loads(path.read_text())["metrics"]["item"][name])


def test_tables_by_hand(tmp_path: Path) -> None:
    one, two = write(tmp_path, "rqvae-seed0"), write(tmp_path, "rqvae-seed1", seed=1)
    best = write(tmp_path, "opq", good=1.0)
    write(tmp_path, "random", good=0.1, shared=4)
    text = report(tmp_path, None)
    found = rows(text)
    assert list(found)[1:] == ["opq", "rqvae", "random", "popularity"], "the best first"
    header = dict(zip(found["item level"][0], range(99), strict=False))
    assert list(header)[:7] == ["seeds", "R@5", "R@10", "R@50", "N@5", "N@10", "N@50"]
    assert found["opq"][0][header["R@10"]] == f"{item(best, 'recall@10'):.4f}"
    values = [item(path, "ndcg@50") for path in (one, two)]
    expected = f"{np.mean(values):.4f} ± {abs(values[0] - values[1]) / 2**0.5:.4f}"
    assert found["rqvae"][0][header["N@50"]] == expected
    assert found["rqvae"][0][header["seeds"]] == "2"
    random = found["random"][0]
    assert float(random[header["SID level R@10"]]) == pytest.approx(4 * float(random[header["R@10"]]), abs=5e-4)
    assert random[header["shared SIDs"]] == "25.0%"
    assert random[header["CPU s"]] == "22"
    assert found["popularity"][0][header["R@10"]] == "0.0100"
    assert "Nobody had liked 5 of the targets before. Later events of other users are unknown." in text
    assert "Settings: protocol log-split, size small, epochs 8, beam 50. CPU a CPU, 2 cores" in text
    assert (tmp_path / "report.md").read_text() == text
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "interval" not in text


def test_intervals_are_those_of_metrics_of_users_drawn_again(tmp_path: Path) -> None:
    for stem, seed, good, shared in (("a-seed0", 0, 0.7, 1), ("a-seed1", 1, 0.7, 1), ("b", 0, 0.4, 2)):
        write(tmp_path, stem, seed, good, shared=shared)
    entries = read_entries(tmp_path)
    base = next(entry for entry in entries if entry.name == "b")
    found = differences(entries, base, ["recall@10", "ndcg@50"])
    assert list(found) == ["a"]
    ranks = {path.stem: load_ranks(path, f"hash of {path.stem}") for path in tmp_path.glob("*.json")}
    for metric, difference in found["a"].items():
        resampled = []
        for multiplicity_RV in multiplicities(USERS, RESAMPLES, SEED):
            for times_U in multiplicity_RV:
                drawn = {}
                for stem, of in ranks.items():
                    assert of is not None
                    rank_U, group_U = np.repeat(of.rank_U, times_U), np.repeat(of.group_U, times_U)
                    drawn[stem] = metrics_at(rank_U, 1 / group_U, BEAM)[metric]
                resampled.append((drawn["a-seed0"] + drawn["a-seed1"]) / 2 - drawn["b"])
        low, high = np.quantile(resampled, [0.025, 0.975])
        assert difference["low"] == pytest.approx(low)
        assert difference["high"] == pytest.approx(high)
        mean = np.mean([item(tmp_path / f"a-seed{seed}.json", metric) for seed in (0, 1)])
        assert difference["difference"] == pytest.approx(mean - item(tmp_path / "b.json", metric))
        assert low < difference["difference"] < high


def test_reference_and_results_without_ranks(tmp_path: Path) -> None:
    write(tmp_path, "opq", good=1.0)
    write(tmp_path, "rqvae")
    write(tmp_path, "old", ranks=False)
    text = report(tmp_path, "rqvae")
    found = rows(text)
    assert len(found["opq"]) == 2
    assert found["opq"][1][0].startswith("+")
    assert "[+" in found["opq"][1][0], "found nearly always instead of in half of the cases"
    assert (len(found["old"]), len(found["rqvae"])) == (1, 1)
    assert "No intervals where each user's ranks are missing (NAME.npz): old." in text
    text = report(tmp_path, "old")
    assert all(len(found) == 1 for name, found in rows(text).items() if name != "item level")
    assert "are missing (NAME.npz): old." in text


def test_token_weights_are_reported(tmp_path: Path) -> None:
    write(tmp_path, "adc_sid")
    change(write(tmp_path, "adc_sid_weights"), lambda result: result["settings"].update(token_weights=True))
    assert {"adc_sid", "adc_sid_weights, token weights"} <= set(rows(report(tmp_path, None)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            lambda result: result["settings"].update(epochs=9),
            r"b\.json: expected settings.epochs 8 as in a\.json, got 9",
        ),
        (lambda result: result["settings"].update(size="tiger"), "settings.size 'small' as in a.json, got 'tiger'"),
        (lambda result: result["settings"].pop("protocol"), "settings.protocol 'log-split' as in a.json, got None"),
        (
            lambda result: result["test"].update(users=61),
            r"b\.json: expected the log of a\.json, got other users or targets",
        ),
        (lambda result: result["metrics"]["popularity_item"].update({"recall@5": 0.2}), "got other users or targets"),
        (lambda result: result.update(log_sha256="1"), r"b\.json: expected the log of a\.json, got another one"),
        (lambda result: result.pop("training"), r"missing \['training'\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, changed: Callable[[dict[str, Any]], None], message: str
) -> None:
    change(write(tmp_path, "a"), lambda result: result.update(log_sha256="0"))
    change(write(tmp_path, "b"), changed)
    with pytest.raises(ContractError, match=message):
        report(tmp_path, None)
    assert not list(tmp_path.glob("report*"))


def test_a_result_that_does_not_name_its_log_goes_with_one_that_does(tmp_path: Path) -> None:
    write(tmp_path, "a")
    change(write(tmp_path, "b"), lambda result: result.update(log_sha256="0"))
    change(write(tmp_path, "c"), lambda result: result.update(log_sha256="1"))
    with pytest.raises(ContractError, match=r"c\.json: expected the log of b\.json, got another one"):
        read_entries(tmp_path)
    (tmp_path / "c.json").unlink()
    assert len(read_entries(tmp_path)) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda result: result["catalog"].update(fingerprint="other"), "a-seed1.json: expected the catalog of a-seed0"),
        (lambda result: result["settings"].update(token_weights=True), "token weights as in a-seed0.json"),
        (lambda result: result["settings"].update(seed=0), r"a seed of its own each, got seeds \[0, 0\]"),
    ],
)
def test_seeds_that_do_not_go_together(tmp_path: Path, changed: Callable[[dict[str, Any]], None], message: str) -> None:
    write(tmp_path, "a-seed0")
    change(write(tmp_path, "a-seed1", seed=1), changed)
    with pytest.raises(ContractError, match=message):
        read_entries(tmp_path)


def test_ranks_of_another_run_or_of_other_users(tmp_path: Path) -> None:
    first, second = write(tmp_path, "a"), write(tmp_path, "b")
    none = np.zeros(USERS, dtype=np.int32)
    save_ranks(second, Ranks(np.arange(USERS), none, none + 1), "hash of b")
    with pytest.raises(ContractError, match="ranks of b: expected the users of a, got others"):
        report(tmp_path, "a")
    save_ranks(second, Ranks(np.arange(USERS), none, none + 1), "hash of another")
    with pytest.raises(ContractError, match=r"b\.npz: expected ranks of the run in b\.json, settings hash of b"):
        report(tmp_path, None)
    ranks_path(first).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ContractError, match=r"a\.npz: expected each user's rank"):
        report(tmp_path, None)


def test_command_prints_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    assert main() == 2
    assert "expected results of `python -m benchmarks.generative`, as NAME.json, got none" in capsys.readouterr().err
    path = write(tmp_path, "a")
    change(path, lambda result: result["settings"].update(beam=5))
    assert main() == 2
    assert "expected settings.beam of at least 10, got 5" in capsys.readouterr().err
    write(tmp_path, "a")
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), "--reference", "b"])
    assert main() == 2
    assert "--reference: expected one of ['a'], got b" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), "--reference", "a"])
    assert main() == 0
    assert "| a | 1 |" in capsys.readouterr().out
