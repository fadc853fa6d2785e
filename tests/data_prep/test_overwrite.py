"""--overwrite replaces what data_prep wrote and deletes nothing else; the old folder is whole until the new one is.

Every kind of preparation, OUT.partial, links, inputs as OUT, replacements that fail or are killed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.amazon import AmazonCommand
from data_prep.behavior import SasRecSettings, add_behavior
from data_prep.build import LogSettings
from data_prep.command import CONFIGURATION
from data_prep.criteo import CriteoCommand
from data_prep.criteo_log import CriteoLogCommand
from data_prep.interactions import Columns, InteractionsCommand
from data_prep.item_pairs import PairSettings
from data_prep.item_vectors import add_vectors
from data_prep.movielens import MovieLensCommand
from data_prep.synthetic import SyntheticCommand, WorldSettings
from sidrec.schema import ContractError
from tests.data_prep.criteo_text import random_lines
from tests.data_prep.criteo_text import write as write_lines
from tests.data_prep.test_amazon import folder_csv
from tests.data_prep.test_movielens import csv_folder
from tests.digests import digest
from tests.killed import ROOT

Prepare = Callable[[Path, bool], None]
ROWS = 400


def log_file(path: Path, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    rows = zip(random.integers(1, 30, ROWS), random.integers(1, 40, ROWS), np.arange(ROWS) * 3600, strict=True)
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"u{user},i{item},{time}\n" for user, item, time in rows))
    return path


def interactions(log: Path, out: Path, overwrite: bool = True) -> None:
    InteractionsCommand(log, out, Columns(), LogSettings(overwrite=overwrite)).run()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return log_file(tmp_path / "log.csv")


@pytest.fixture
def out(log: Path, tmp_path: Path) -> Path:
    """A folder that a preparation wrote."""
    interactions(log, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(params=["interactions", "movielens", "amazon", "synthetic", "criteo", "criteo_log"])
def prepare(request: pytest.FixtureRequest, tmp_path: Path) -> Prepare:
    source = tmp_path / "src"
    source.mkdir()
    raw = write_lines(source / "day_0", random_lines(300, 4))

    def criteo(out: Path, overwrite: bool) -> None:
        CriteoCommand((raw, out), overwrite=overwrite).run()

    def criteo_log(out: Path, overwrite: bool) -> None:
        if not (source / "npy").exists():
            criteo(source / "npy", False)
        CriteoLogCommand(source / "npy", out, "C3", width=4, overwrite=overwrite).run()

    def settings(overwrite: bool) -> LogSettings:
        return LogSettings(validation_share=0.0, test_share=0.3, overwrite=overwrite)

    def movielens(out: Path, overwrite: bool) -> None:
        ratings = csv_folder(source / "ml") if not (source / "ml").exists() else source / "ml"
        MovieLensCommand(ratings, out, settings(overwrite), vectors="none").run()

    def amazon(out: Path, overwrite: bool) -> None:
        if not (source / "amazon").exists():
            (source / "amazon").mkdir()
            folder_csv(source / "amazon")
        AmazonCommand(source / "amazon", out, settings(overwrite), vectors="none").run()

    def synthetic(out: Path, overwrite: bool) -> None:
        world = WorldSettings(rows=2000, users=40, items=100, days=20)
        SyntheticCommand(out, world, LogSettings(history=5, overwrite=overwrite)).run()

    kinds: dict[str, Prepare] = {
        "interactions": lambda out, overwrite: interactions(log_file(source / "log.csv"), out, overwrite),
        "movielens": movielens,
        "amazon": amazon,
        "synthetic": synthetic,
        "criteo": criteo,
        "criteo_log": criteo_log,
    }
    return kinds[request.param]


def refused(run: Callable[[], None]) -> str:
    with pytest.raises(ContractError) as error:
        run()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_preparation_replaces_its_own_folder_and_no_other(prepare: Prepare, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(out, False)
    before = digest(out)
    assert "no such folder yet (or the flag --overwrite), got one that exists" in refused(lambda: prepare(out, False))
    prepare(out, True)
    assert digest(out) == before

    (out / "notes.txt").write_text("years of notes")
    (out / "catalog").mkdir()
    (out / "catalog" / "codes.parquet").write_text("a fit of a night")
    assert "got also notes.txt, catalog/codes.parquet; move" in refused(lambda: prepare(out, True))
    assert {name: digest(out)[name] for name in before} == before
    assert (out / "notes.txt").read_text() == "years of notes"

    foreign = tmp_path / "project"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    expected = (
        f"{foreign}: expected a folder that data_prep wrote, or nothing, to replace, got a folder with thesis.tex; "
        "name another folder"
    )
    assert refused(lambda: prepare(foreign, True)) == expected
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_plain_file_is_not_replaced(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        assert "expected a folder to write, got a file" in refused(lambda: prepare(tmp_path / "file", overwrite))  # noqa: B023
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_its_own_manifest_is_somebody_elses(log: Path, out: Path) -> None:
    """Everybody may write a log by the contract; what none of our preparations says of itself is not ours."""
    path = out / "log" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "protocol": {"made": "by hand"}}))
    assert "expected a folder that data_prep wrote" in refused(lambda: interactions(log, out))
    path.write_text("{}")
    assert "expected a folder that data_prep wrote" in refused(lambda: interactions(log, out))
    assert len(digest(out)) >= 4


def test_what_commands_of_data_prep_add_goes_with_the_folder(log: Path, out: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.npy"
    np.save(vectors, np.ones((pq.read_metadata(out / "items.parquet").num_rows, 2), np.float32))
    add_vectors(out / "items.parquet", str(vectors))
    add_behavior(out, SasRecSettings(width=4, length=4, epochs=1, negatives=2), PairSettings(), check=False)
    assert (out / "pairs.parquet").exists()
    (out / "items.parquet.partial").write_text("of a killed data_prep.item_vectors")
    interactions(log, out)
    assert sorted(path.name for path in out.iterdir()) == ["ids", "items.parquet", "log"]


def test_pairs_that_data_prep_did_not_write_stay(log: Path, out: Path) -> None:
    pq.write_table(pa.table({"item_id": [1], "other_id": [2]}), out / "pairs.parquet")
    before = digest(out)
    sasrec = SasRecSettings(width=4, length=4, epochs=1, negatives=2)
    assert "got also pairs.parquet" in refused(lambda: interactions(log, out))
    said = refused(lambda: add_behavior(out, sasrec, PairSettings(), check=False))
    assert said.startswith(f"{out / 'pairs.parquet'}: expected no such file yet, or one that data_prep.behavior wrote")
    (out / "behavior.json").write_text('{"mine": 1}')
    assert "data_prep.behavior wrote" in refused(lambda: add_behavior(out, sasrec, PairSettings(), check=False))
    assert {name: digest(out)[name] for name in before} == before


def test_the_raw_file_is_never_the_output(tmp_path: Path, log: Path) -> None:
    assert "got a file" in refused(lambda: interactions(log, log))
    holds = refused(lambda: interactions(log, tmp_path))
    assert holds == (
        f"{tmp_path}: expected an output folder apart from the input, got a folder that holds the input {log}; "
        "name another folder"
    )
    source = csv_folder(tmp_path / "ml")
    inside = refused(lambda: MovieLensCommand(source, source / "out", vectors="none").run())
    assert f"a folder inside the input {source}" in inside
    assert "the input" in refused(lambda: MovieLensCommand(source, source, vectors="none").run())
    days = [write_lines(tmp_path / f"day_{day}", random_lines(50, day)) for day in (5, 6)]
    assert "day_6: expected a folder to write, got a file" in refused(CriteoCommand(tuple(days), overwrite=True).run)
    assert all(path.exists() for path in (log, *days, source / "ratings.csv"))


def test_links_do_not_hide_the_input(tmp_path: Path, out: Path, log: Path) -> None:
    raw = log.rename(out / "raw.csv")  # the last copy, in the folder to replace
    log.symlink_to(raw)
    assert "a folder that holds the input" in refused(lambda: interactions(log, out))
    (tmp_path / "link").symlink_to(out)
    assert "a folder that holds the input" in refused(lambda: interactions(log, tmp_path / "link"))
    assert raw.exists()


def test_vectors_inside_the_output_are_an_input(tmp_path: Path, log: Path, out: Path) -> None:
    vectors = out / "vectors.npy"
    np.save(vectors, np.ones((pq.read_metadata(out / "items.parquet").num_rows, 2), np.float32))
    command = InteractionsCommand(log, out, Columns(), LogSettings(overwrite=True), str(vectors))
    assert "a folder that holds the input" in refused(command.run)
    assert vectors.exists()


def test_the_npy_folder_is_an_input_of_its_log(tmp_path: Path) -> None:
    npy = tmp_path / "npy"
    CriteoCommand((write_lines(tmp_path / "day_0", random_lines(300, 4)), npy)).run()
    before = digest(npy)
    for out, words in ((npy, "the input"), (npy / "out", "a folder inside the input")):
        assert words in refused(CriteoLogCommand(npy, out, "C3", width=4, overwrite=True).run)
    assert digest(npy) == before


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path, log: Path, out: Path) -> None:
    big = tmp_path / "disk" / "data"
    big.parent.mkdir()
    out.rename(big)
    out.symlink_to(big)
    log_file(log, seed=1)
    interactions(log, out)
    interactions(log, tmp_path / "straight")
    assert out.is_symlink()
    assert digest(big) == digest(tmp_path / "straight")
    assert [path.name for path in big.parent.iterdir()] == ["data"]
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "a link to nowhere, which is not there" in refused(lambda: interactions(log, tmp_path / "dangling"))
    assert (tmp_path / "dangling").is_symlink()


def test_unfinished_work_of_ours_alone_is_discarded(tmp_path: Path, log: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.tex").write_text("mine")
    assert "an unfinished run's alone, got something else (thesis.tex)" in refused(lambda: interactions(log, out))
    (partial / CONFIGURATION).write_text('{"source": "another"}')
    assert "thesis.tex" in refused(lambda: interactions(log, out))
    (partial / "thesis.tex").unlink()
    (partial / "data").mkdir()
    (partial / CONFIGURATION).write_text("not ours")
    assert f"(no {CONFIGURATION})" in refused(lambda: interactions(log, out))
    (partial / CONFIGURATION).write_text('{"source": "another"}')
    interactions(log, out)
    assert not partial.exists()

    partial.symlink_to(tmp_path / "out")
    assert "a link or a file" in refused(lambda: interactions(log, out))
    assert (out / "items.parquet").exists()


def test_an_input_inside_the_unfinished_work_stays(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    (partial / "data").mkdir(parents=True)
    (partial / CONFIGURATION).write_text("{}")
    log = log_file(partial / "data" / "log.csv")
    assert "out.partial: expected an output folder apart from the input" in refused(
        lambda: interactions(log, tmp_path / "out")
    )
    assert log.exists()


def test_bad_input_leaves_the_old_folder_whole(log: Path, out: Path) -> None:
    before = digest(out)
    log.write_text(log.read_text() + "u1,i1,yesterday\n")
    assert "line 402: expected a time: a number of units since 1970" in refused(lambda: interactions(log, out))
    assert digest(out) == before


def test_what_comes_to_out_meanwhile_is_refused_at_the_end_and_the_work_is_kept(
    tmp_path: Path, log: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preparation takes hours: a catalog may be fitted into OUT, or OUT be made by another process."""
    log_file(log, seed=1)
    monkeypatch.setattr("data_prep.build.write_items", _and_then(lambda: (out / "notes.txt").write_text("mine")))
    assert "got also notes.txt" in refused(lambda: interactions(log, out))
    monkeypatch.undo()
    assert (tmp_path / "out.partial" / "scratch" / "relations" / "by_item.parquet").exists()
    (out / "notes.txt").unlink()
    interactions(log, out)
    interactions(log, tmp_path / "straight")
    assert digest(out) == digest(tmp_path / "straight")

    monkeypatch.setattr("data_prep.build.write_items", _and_then((tmp_path / "new").mkdir))
    said = refused(lambda: interactions(log, tmp_path / "new", overwrite=False))
    assert "no such folder yet (or the flag --overwrite), got one that exists" in said


def _and_then(action: Callable[[], object]) -> Callable[..., None]:
    from data_prep.log_files import write_items

    def both(*arguments: object) -> None:
        write_items(*arguments)  # type: ignore[arg-type]
        action()

    return both


KILLED_WHILE_REPLACING = """
import os, signal, sys
from pathlib import Path
from data_prep.command import run
from data_prep.interactions import InteractionsCommand

rename = Path.rename
def rename_or_die(self, target):
    if self.name == "{name}":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = rename_or_die
run(InteractionsCommand, "data_prep.interactions")
"""


def kill_replacing(name: str, log: Path, out: Path) -> None:
    """Kills the command when it is about to rename a file or folder of that name."""
    command = [sys.executable, "-c", KILLED_WHILE_REPLACING.format(name=name), str(log), str(out), "--overwrite"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment, check=False)
    assert done.returncode == -9, done.stderr.decode()


@pytest.mark.parametrize("same", [True, False], ids=["the same command", "another command"])
def test_killed_between_the_renames_the_old_folder_comes_back(tmp_path: Path, log: Path, out: Path, same: bool) -> None:
    before = digest(out)
    log_file(log, seed=1)
    kill_replacing("data", log, out)  # OUT has been moved away, the new folder has not got its name
    assert not out.exists()
    assert digest(tmp_path / "out.partial" / "replaced") == before
    said = refused(lambda: interactions(log, out, overwrite=False))
    assert "got one that exists" in said
    assert digest(out) == before, "the next command puts it back, whatever else it does"
    if not same:
        log_file(log, seed=2)
    interactions(log, out)
    interactions(log, tmp_path / "straight")
    assert digest(out) == digest(tmp_path / "straight")
    assert not (tmp_path / "out.partial").exists()


def test_killed_before_the_renames_the_old_folder_is_there(tmp_path: Path, log: Path, out: Path) -> None:
    before = digest(out)
    log_file(log, seed=1)
    kill_replacing("out", log, out)
    assert digest(out) == before


def test_leftovers_of_a_finished_replacement_are_no_unfinished_work(tmp_path: Path, log: Path, out: Path) -> None:
    """Killed while it deletes scratch: with the same configuration, what is left is not gone on from."""
    partial = tmp_path / "out.partial"
    log_file(log, seed=1)
    kill_replacing("data", log, out)
    (partial / "replaced").rename(tmp_path / "aside")
    (partial / "data").rename(out)
    (tmp_path / "aside").rename(partial / "replaced")
    expected = digest(out)
    interactions(log, out)
    assert digest(out) == expected
    assert not partial.exists()


def test_a_former_folder_is_not_deleted_where_another_took_its_place(tmp_path: Path, log: Path, out: Path) -> None:
    before = digest(out)
    log_file(log, seed=1)
    kill_replacing("data", log, out)
    interactions(log_file(tmp_path / "other.csv", seed=2), tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(out)
    assert "whose replacement was killed" in refused(lambda: interactions(log, out))
    assert digest(tmp_path / "out.partial" / "replaced") == before


def test_the_current_folder_as_output(tmp_path: Path, log: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out)
    assert "the folder that this command runs in" in refused(lambda: interactions(log, Path()))
    assert (out / "items.parquet").exists()


def test_the_command_ends_with_status_2_and_one_message(tmp_path: Path, log: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "notes.txt").write_text("mine")
    command = [sys.executable, "-m", "data_prep.interactions", str(log), str(tmp_path / "project"), "--overwrite"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"sidrec: error: {tmp_path / 'project'}: expected a folder that data_prep wrote, or nothing, to replace, "
        "got a folder with notes.txt; name another folder\n"
    )
