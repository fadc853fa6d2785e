"""One command at a time writes an output: two processes on one OUT, kill -9, and what a lock leaves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sidrec import cli
from sidrec.io.output_lock import MARK, OutputLock, locked
from sidrec.schema import ContractError
from tests.bench.bench_results import made_up
from tests.checkpoint.made_up_checkpoint import HID, grid, numbered, write_checkpoint
from tests.digests import digest
from tests.sid.item_files import clustered_vectors, write_items
from tests.train.refusals import refusal

HOLDS = """
import sys
from pathlib import Path
from sidrec.io.output_lock import OutputLock
locks = [OutputLock(Path(out)) for out in sys.argv[1:]]
for lock in locks:
    lock.take()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(*outs: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the locks of these outputs; killed with SIGKILL at the end."""
    command = [sys.executable, "-c", HOLDS, *map(str, outs)]
    process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


# Commands


Words = Callable[[Path], list[str]]
SYNTHETIC = ["--rows", "1000", "--users", "20", "--items", "90", "--width", "24"]


def csv(folder: Path) -> Path:
    log = folder / "clicks.csv"
    rows = "".join(f"u{n % 7},i{n % 11},{n % 2},{n}\n" for n in range(200))
    log.write_text(f"user_id,item_id,label,timestamp\n{rows}")
    return log


def interactions(folder: Path) -> list[str]:
    return ["prep", "interactions", str(csv(folder)), str(folder / "out"), "--vectors", "none"]


def movielens(folder: Path) -> list[str]:
    (folder / "raw").mkdir()
    stars = "".join(f"{n % 7 + 1},{n % 11 + 1},{n % 5 + 1},{n}\n" for n in range(200))
    (folder / "raw" / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{stars}")
    titles = "".join(f"{n + 1},Film {n},Drama\n" for n in range(11))
    (folder / "raw" / "movies.csv").write_text(f"movieId,title,genres\n{titles}")
    return ["prep", "movielens", str(folder / "raw"), str(folder / "out"), "--vectors", "none"]


def criteo(folder: Path) -> list[str]:
    row = "\t".join(["1", *["3"] * 13, *["68fd1e64"] * 26])
    (folder / "train.txt").write_text(f"{row}\n" * 20)
    return ["prep", "criteo", str(folder / "train.txt"), str(folder / "out")]


def item_vectors(folder: Path) -> list[str]:
    write_items(folder / "out" / "items.parquet", np.arange(1, 13))
    np.save(folder / "v.npy", np.ones((12, 4), np.float32))
    return ["prep", "item-vectors", str(folder / "out"), "--from", str(folder / "v.npy")]


def fit(folder: Path) -> list[str]:
    write_items(folder / "data" / "items.parquet", np.arange(1, 121), text=clustered_vectors(120))
    learner = "{kind: residual_kmeans, levels: 2, codebook_size: 8}"
    (folder / "recipe.yaml").write_text(
        f"name: small\ndata: {{path: {folder}/data, catalog: {folder}/out}}\n"
        f"tokenizer: {{vectors: [text], learner: {learner}}}\n"
    )
    return ["fit", str(folder / "recipe.yaml")]


def tables(folder: Path) -> str:
    file = folder / "tables.yaml"
    file.write_text("name: shop\nrows_per_step: 64\ntables:\n  - {name: big, rows: 90, width: 8, ids_per_bag: 4}\n")
    return str(file)


def bench(folder: Path) -> str:
    (folder / "bench.json").write_text(json.dumps(made_up(["a", "b"]).as_json()))
    return str(folder / "bench.json")


def table(folder: Path) -> list[str]:
    write_checkpoint(folder / "run" / "checkpoints" / "step-7", {HID: grid(numbered(13, 4), 1, 1)})
    return ["table", "export", str(folder / "run"), "hid", str(folder / "out.parquet")]


def study(folder: Path) -> list[str]:
    recipe = "name: small\ndata: {path: d, catalog: c}\n"
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "study.yaml").write_text(
        f"name: out\nwork: {folder}/runs\nresults: {folder}\nruns: 1\n"
        f"datasets: {{toy: {folder}/recipe.yaml}}\nvariants: {{a: {{}}}}\nreferences: [a]\n"
    )
    return ["study", str(folder / "study.yaml"), "--report"]


AGAIN: dict[str, tuple[str, Words]] = {
    "interactions": ("out", interactions),
    "movielens": ("out", movielens),
    "synthetic": ("out", lambda folder: ["prep", "synthetic", str(folder / "out"), *SYNTHETIC]),
    "criteo": ("out", criteo),
    "item-vectors": ("out", item_vectors),
    "fit": ("out", fit),
    "plan": ("out.json", lambda folder: ["plan", tables(folder), "--export", str(folder / "out.json")]),
    "page": ("out.html", lambda folder: ["bench", "page", bench(folder), str(folder / "out.html")]),
    "table": ("out.parquet", table),
}
"""Commands that run again after the kill: the name of OUT, and the arguments."""
REFUSED: dict[str, tuple[str, Words]] = {
    "behavior": ("out", lambda folder: ["prep", "behavior", str(folder / "out")]),
    "criteo-log": ("out", lambda folder: ["prep", "criteo-log", *prepared_criteo(folder)]),
    "calibrate": ("out.json", lambda folder: ["bench", "calibrate", bench(folder), "--out", str(folder / "out.json")]),
    "bench": ("out", lambda folder: ["bench", "plans", tables(folder), "--out", str(folder / "out")]),
    "study": ("out", study),
}


def prepared_criteo(folder: Path) -> list[str]:
    assert cli.main([*criteo(folder)[:-1], str(folder / "npy")]) == 0
    return [str(folder / "npy"), str(folder / "out"), "--item", "C3"]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    made = {name: tmp_path / name for name in AGAIN | REFUSED}
    for folder in made.values():
        folder.mkdir()
    return made


def test_a_second_command_is_refused_and_runs_after_the_first_was_killed(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {name: words(folders[name]) for name, (_, words) in (AGAIN | REFUSED).items()}
    outs = {name: folders[name] / out for name, (out, _) in (AGAIN | REFUSED).items()}
    with held(*outs.values()) as other:
        before = {name: digest(folder) for name, folder in folders.items()}
        for name, words in commands.items():
            capsys.readouterr()
            said = refusal(capsys, cli.main(words))
            expected = "expected an output that no other command is writing, got one that process "
            assert said.startswith(f"{outs[name]}: {expected}{other.pid} on "), name
            assert said.endswith(" writes; wait until it ends"), name
            assert digest(folders[name]) == before[name], name
    assert outs["fit"].with_name(".out.lock").exists()
    for name in AGAIN:
        assert cli.main(commands[name]) == 0, (name, capsys.readouterr().err)
        assert outs[name].exists(), name
        assert not list(folders[name].glob(".*")), name


def test_two_preparations_at_once(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "data_prep.synthetic", str(tmp_path / "out"), "--rows", "20000", *SYNTHETIC[2:]]
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    (refused,) = (text for text, process in zip(said, both, strict=True) if process.returncode)
    assert "no other command is writing" in refused or "expected no such folder yet" in refused
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Locks


@pytest.mark.parametrize("content", [b"", b"mine", b"locked by me", b"\xff\xfe"])
def test_a_file_that_sidrec_did_not_write_stays(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / ".out.lock"
    file.write_bytes(content)
    with locked(tmp_path / "out"):
        assert file.read_bytes() == content
    assert file.read_bytes() == content
    with held(tmp_path / "out"), pytest.raises(ContractError, match="got one that another process writes"):
        OutputLock(tmp_path / "out").take()


def test_a_file_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").write_text(f"{MARK}1 on elsewhere\n")
    with locked(tmp_path / "out"):
        assert (tmp_path / ".out.lock").read_text().startswith(f"{MARK}{os.getpid()} on ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "link", "dangling link", "pipe", "loop"])
def test_nothing_is_locked_where_the_file_cannot_be_made(kind: str, tmp_path: Path) -> None:
    file = tmp_path / ".out.lock"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        target = {"link": tmp_path / "mine", "dangling link": tmp_path / "none", "loop": file}[kind]
        (tmp_path / "mine").write_text("mine")
        file.symlink_to(target)
    before = file.lstat()
    for _ in range(2):
        with locked(tmp_path / "out"):
            pass
    assert file.lstat().st_ino == before.st_ino


def test_parents_made_for_a_lock_go_with_it_if_they_are_empty(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b" / ".out.lock").exists()
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "mine").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]
    with locked(tmp_path / "a" / "mine" / "out"), locked(Path("/")):  # below a file; without a name
        pass


def test_a_process_does_not_wait_for_itself_and_a_lost_lock_ends(tmp_path: Path) -> None:
    with locked(tmp_path / "out"), locked(tmp_path / "out"):
        pass
    lock = OutputLock(tmp_path / "out")
    lock.take()
    del lock
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):
        with locked(tmp_path / "deep" / "out"):
            pass
    assert not list(tmp_path.iterdir())
