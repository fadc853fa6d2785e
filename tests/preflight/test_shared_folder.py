"""Machines that do not share the run directory are refused before anything is trained, also when a run is resumed."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from sidrec.errors import SidrecError
from sidrec.preflight.run_checks import NONCE, check_shared_folder
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log

EACH = {"train": {"runs": "runs", "epochs": 1}}
"""A relative folder: each rank trains in a working directory of its own."""


def _train(rank: int, world: int, folder: str, places: list[str]) -> str:
    from sidrec.train.run import train

    os.chdir(places[rank])
    pytest.MonkeyPatch().setattr(socket, "gethostname", lambda: f"host-{rank}")
    try:
        train(small_recipe(Path(folder), **EACH), joined(rank, world))
    except SidrecError as error:
        return str(error)
    return ""


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("log"), rows=120)


def refusal(place: Path, other: Path) -> str:
    return (
        "train.runs: expected one folder that all machines share, but what rank 0 on host-0 writes into "
        f"{place}/runs/small/seed0 is not seen by rank(s) 1 on host-1 at {other}/runs/small/seed0; "
        "mount one folder on all machines and name it by --train.runs"
    )


def test_a_folder_of_its_own_on_a_machine_is_refused_and_nothing_is_left(log: Path, tmp_path: Path) -> None:
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
    sentence = refusal(*places)
    assert run_on_ranks(2, _train, str(log), list(map(str, places))) == [sentence, f"rank 0 stopped: {sentence}"]
    assert set(content(tmp_path)) == set(map(str, places))


def test_a_run_is_not_resumed_in_a_copy_and_stays_as_it_is(log: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    assert run_on_ranks(2, _train, str(log), [str(first)] * 2) == ["", ""]
    run = first / "runs/small/seed0"
    assert list((run / "checkpoints").glob("step-*"))
    shutil.copytree(first, second)
    before = content(tmp_path)
    sentence = refusal(first, second)
    assert run_on_ranks(2, _train, str(log), [str(first), str(second)]) == [sentence, f"rank 0 stopped: {sentence}"]
    assert content(tmp_path) == before

    (run / NONCE.format("0123456789abcdef")).write_text("0123456789abcdef")  # of a process that was killed
    (run / f"{NONCE.format('00')}.partial4711").write_text("")
    assert run_on_ranks(2, _train, str(log), [str(first)] * 2) == ["", ""]
    assert not list(run.glob("nonce*"))


def _late(rank: int, world: int, folder: str) -> list[str]:
    """Rank 1 sees the nonce at its third look only, as behind the cache of a network file system."""
    if rank == 1:
        read, looks = Path.read_text, iter(range(2))

        def late(path: Path, *args: str, **kwargs: str) -> str:
            if next(looks, None) is not None:
                raise FileNotFoundError(path)
            return read(path, *args, **kwargs)

        pytest.MonkeyPatch().setattr(Path, "read_text", late)
    check_shared_folder(Path(folder) / "run", joined(rank, world))
    return [path.name for path in Path(folder).iterdir()]


def test_a_file_that_is_seen_late_is_waited_for(tmp_path: Path) -> None:
    assert run_on_ranks(2, _late, str(tmp_path))[0] == []
