"""Catalogs of a study: each is fitted once; what a failed, killed or outdated fit leaves is not used."""

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidrec.io import output_lock
from sidrec.sid.catalog import CARD
from sidrec.study.catalogs import Catalogs, RunError
from sidrec.study.definition import Study, load_study
from sidrec.study.jobs import Run, study_runs
from sidrec.study.processes import Ended
from sidrec.study.runner import train_runs

RECIPE = {
    "name": "shop",
    "data": {"path": "data", "catalog": "none"},
    "tokenizer": {"learner": {"kind": "residual_kmeans", "levels": 2, "codebook_size": 4}},
    "model": {"item": {"kind": "sid_coord", "granularities": ["s1", "s2"]}},
}
SID: dict[str, Any] = {"model": {"item": {"kind": "sid", "granularities": ["s1", "s2"]}}}
HID: dict[str, Any] = {"model": {"item": {"kind": "hid"}}}
HOLDER = """
import fcntl, sys
held = open(sys.argv[1], "w")
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


class Fits:
    """Processes whose fits call `fit`. fit: called with the catalog's folder and the log; returns a status."""

    def __init__(self, fit: Callable[[Path, Path], int]) -> None:
        self._fit = fit
        self.fitted: list[Path] = []

    def sidrec(self, words: Sequence[str], output: Path) -> Ended:
        if words[0] != "fit":
            return Ended(1, 0.0)
        assert words[2:] == ["--overwrite"]
        recipe = yaml.safe_load(Path(words[1]).read_text())
        assert recipe["tokenizer"]["seed"] == int(output.stem.removeprefix("fit"))
        catalog = Path(recipe["data"]["catalog"])
        self.fitted.append(catalog)
        return Ended(self._fit(catalog, output), 1.0)

    def stop(self) -> None:
        pass


def works(catalog: Path, output: Path) -> int:
    output.write_text("fine\n")
    catalog.mkdir(exist_ok=True)
    (catalog / CARD).write_text("{}")
    return 0


def breaks(catalog: Path, output: Path) -> int:
    output.write_text("first line\nsidrec: error: no column text\n")
    return 2


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/items.parquet").write_text("items")


def _study(**keys: Any) -> Study:
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    study = {"datasets": {"shop": "recipe.yaml"}, "variants": {"sid": SID, "both": {}, "hid": HID}, "runs": 2}
    Path("small.yaml").write_text(yaml.safe_dump({**study, **keys}, sort_keys=False))
    return load_study(Path("small.yaml"))


def _runs(*variants: str, number: int = 0) -> list[Run]:
    found = {run.variant: run for run in study_runs(_study()) if run.number == number}
    return [found[variant] for variant in variants]


def _catalogs(fits: Fits) -> Catalogs:
    return Catalogs(fits)  # type: ignore[arg-type]


def _catalog(run: Run) -> Path:
    return Path(run.recipe["data"]["catalog"])


def test_runs_that_need_a_catalog_at_the_same_time_fit_it_once() -> None:
    """The first fit goes on until a second one begins, or half a second has passed without one."""
    runs, second = _runs("sid", "both"), threading.Event()

    def fit(catalog: Path, output: Path) -> int:
        if len(fits.fitted) > 1:
            second.set()
        second.wait(0.5)
        return works(catalog, output)

    fits = Fits(fit)
    catalogs, begin = _catalogs(fits), threading.Barrier(2, timeout=300)
    ended = []

    def ensure(run: Run) -> None:
        begin.wait()
        catalogs.ensure(run)
        ended.append((run.variant, (_catalog(run) / CARD).exists()))

    threads = [threading.Thread(target=ensure, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert sorted(ended) == [("both", True), ("sid", True)]
    assert fits.fitted == [_catalog(runs[0])] == [_catalog(runs[1])]


def test_another_study_that_fits_the_catalog_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = _runs("sid")
    catalog = _catalog(run)
    _catalogs(Fits(works)).ensure(run)
    facts = catalog.with_suffix(".json").read_text()
    catalog.with_suffix(".json").unlink()  # as before that study has ended its fit
    waits, attempt = threading.Event(), output_lock._attempt

    def watched(path: Path, in_place: bool) -> tuple[int, bool] | None:
        try:
            return attempt(path, in_place)
        except BlockingIOError:
            waits.set()
            raise

    monkeypatch.setattr(output_lock, "_attempt", watched)
    lock, fits = catalog.with_name(f".{catalog.name}.log.lock"), Fits(works)
    command = [sys.executable, "-S", "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        thread = threading.Thread(target=_catalogs(fits).ensure, args=(run,))
        thread.start()
        assert waits.wait(300)
        catalog.with_suffix(".json").write_text(facts)
        other.communicate()
    thread.join(300)
    assert not thread.is_alive()
    assert fits.fitted == []


def test_a_failed_fit_fails_every_run_that_needs_it_and_is_tried_again_by_the_next_command() -> None:
    (first, second), (other,) = _runs("sid", "both"), _runs("sid", number=1)
    fits = Fits(lambda catalog, output: (breaks if catalog.name == "fit0" else works)(catalog, output))
    catalogs = _catalogs(fits)
    for run in (first, second):
        with pytest.raises(RunError, match=r"no catalog: exit status 2, output in .*fit0\.log") as caught:
            catalogs.ensure(run)
        assert str(caught.value).endswith("first line\nsidrec: error: no column text")
    catalogs.ensure(other)
    assert [catalog.name for catalog in fits.fitted] == ["fit0", "fit1"]
    again = Fits(works)
    for run in (first, second, other):
        _catalogs(again).ensure(run)
    assert [catalog.name for catalog in again.fitted] == ["fit0"]


def test_a_study_reports_the_runs_whose_catalog_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = Fits(breaks)
    monkeypatch.setattr("sidrec.study.runner.Processes", lambda warm: nullcontext(fits))
    study = _study(runs=1)
    failed = {run.variant: message for run, message in train_runs(study, study_runs(study), lambda *_: None)}
    assert list(failed) == ["sid", "both", "hid"]
    assert failed["sid"] == failed["both"]
    assert "no column text" in failed["sid"]
    assert "catalog" not in failed["hid"], "HIDs alone are trained without one"
    assert len(fits.fitted) == 1


@pytest.mark.parametrize("left", ["no card", "no items", "a folder alone"])
def test_what_a_killed_fit_left_is_not_used(left: str) -> None:
    (run,) = _runs("sid")
    catalog = _catalog(run)
    _catalogs(Fits(works)).ensure(run)
    if left != "no items":
        (catalog / CARD).unlink()
    if left != "no card":
        catalog.with_suffix(".json").unlink()
    fits = Fits(works)
    _catalogs(fits).ensure(run)
    _catalogs(fits).ensure(run)
    assert fits.fitted == [catalog]


def test_a_fit_that_reports_success_without_a_catalog_has_failed() -> None:
    (run,) = _runs("sid")

    def nothing(catalog: Path, output: Path) -> int:
        output.write_text("")
        return 0

    with pytest.raises(RunError, match="no catalog: exit status 0"):
        _catalogs(Fits(nothing)).ensure(run)


def test_changed_items_are_fitted_again(caplog: pytest.LogCaptureFixture) -> None:
    (run,) = _runs("sid")
    fits = Fits(works)
    _catalogs(fits).ensure(run)
    Path("data/items.parquet").write_text("other items")
    _catalogs(fits).ensure(run)
    _catalogs(fits).ensure(run)
    assert len(fits.fitted) == 2
    assert "the items have changed since it was fitted" in caplog.text


def test_items_that_change_during_a_fit_are_fitted_again() -> None:
    (run,) = _runs("sid")

    def changes(catalog: Path, output: Path) -> int:
        Path("data/items.parquet").write_text("other items")
        return works(catalog, output)

    fits = Fits(changes)
    _catalogs(fits).ensure(run)
    again = Fits(works)
    _catalogs(again).ensure(run)
    assert len(again.fitted) == 1


def test_a_run_without_sids_fits_nothing() -> None:
    fits = Fits(breaks)
    _catalogs(fits).ensure(*_runs("hid"))
    assert fits.fitted == []
