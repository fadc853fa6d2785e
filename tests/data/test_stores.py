"""Batches of a log in a store: those of the same log on disk, to the bit, however the store behaves."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from sidrec.data.dataset import stat_moments
from sidrec.errors import ContractError
from sidrec.io import local_cache
from sidrec.io.local_cache import IN_USE, local_file, session
from sidrec.io.parquet_places import bytes_of_groups, ranges_of, read_footer
from sidrec.io.places import StoreError, StorePath, put
from sidrec.schema import LOG
from tests.data.log_files import Log, log_of
from tests.data.test_loader import contents
from tests.s3_server import Store

ROWS = 129


@dataclass(frozen=True)
class TwoLogs:
    """The same log on disk and in a store."""

    local: Log
    stored: Log

    def object(self, index: int) -> StorePath:
        """A file of the log in the store."""
        return cast(StorePath, self.stored.file(index))

    def both(self, epoch: int, first_step: int = 0, **data: Any) -> None:
        """Asserts that both give the same batches."""
        loader = self.stored.loader(**data)
        try:
            expected = contents(list(self.local.loader(workers=0).batches(epoch, first_step)))
            assert contents(list(loader.batches(epoch, first_step))) == expected
        finally:
            loader.close()


@pytest.fixture
def logs(tmp_path: Path, store: Store, bucket: StorePath, monkeypatch: pytest.MonkeyPatch) -> TwoLogs:
    monkeypatch.setenv("SIDREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(local_cache, "_sessions", {})
    local = log_of(tmp_path / "data", ROWS)
    store.bucket(bucket.authority, tmp_path / "data")
    store.requests()
    return TwoLogs(local, Log(cast(Path, bucket)))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_local_files(logs: TwoLogs, workers: int) -> None:
    assert logs.stored.manifest == logs.local.manifest
    for epoch, first_step in ((0, 0), (1, 0), (1, 5)):
        logs.both(epoch, first_step, workers=workers)
    moments = [stat_moments(log.folder, log.manifest) for log in (logs.stored, logs.local)]
    np.testing.assert_array_equal(moments[0], moments[1])


def test_workers_know_credentials_that_were_set_after_others_had_started(
    logs: TwoLogs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in store.environment:
        monkeypatch.delenv(name)
    local = logs.local.loader(workers=1)  # starts the process that workers are forked from
    list(local.batches(0))
    local.close()
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    logs.both(0, workers=1)


def test_each_row_group_is_fetched_once_for_all_workers_and_epochs(logs: TwoLogs, store: Store) -> None:
    loader = logs.stored.loader(workers=2)
    opened = store.requests()
    files = len(logs.local.manifest.files("train"))
    assert sum(".parquet" in request for request in opened) == 2 * files  # HEAD and GET of each footer
    groups = len(loader.reader.groups)
    list(loader.batches(0))
    first = [request for request in store.requests() if request.startswith("GET")]
    assert len(first) == groups
    list(loader.batches(1))
    assert store.requests() == []
    loader.close()


def test_the_cache_keeps_its_bound(logs: TwoLogs, store: Store) -> None:
    whole = sum(path.stat().st_size for path in (logs.local.folder / LOG).rglob("*.parquet"))
    for gb in (whole / 4e9, 1e-9):
        logs.both(0, cache_gb=gb)
        logs.both(1, 3, cache_gb=gb)
        assert bytes_of_groups(session()) <= max(gb * 1e9, whole / 4)
    assert bytes_of_groups(session()) > 0


def test_throttled_and_cut_requests_change_nothing(logs: TwoLogs, store: Store) -> None:
    store.faults(("GET", ".parquet", 6, 503), ("GET", ".parquet", 4, "cut"), ("HEAD", ".parquet", 3, 500))
    logs.both(0)


def test_a_store_that_stays_away_ends_the_epoch_with_its_sentence(
    logs: TwoLogs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidrec.io.places.ATTEMPTS", 2)
    loader = logs.stored.loader(cache_gb=1e-9)
    store.faults(("GET", ".parquet", 999, 503))
    with pytest.raises(StoreError, match=r"\.parquet: expected a store that answers within 2 attempts"):
        list(loader.batches(0))
    store.faults()
    assert contents(list(loader.batches(0))) == contents(list(logs.local.loader().batches(0)))


def test_an_object_that_is_replaced_during_a_run_is_refused(logs: TwoLogs) -> None:
    loader = logs.stored.loader()
    path = logs.object(1)
    put(path, path.read_bytes() + b"x")
    with pytest.raises(StoreError, match=f"{path}: expected the object that was there at the start, got another one"):
        list(loader.batches(0))


def test_a_missing_object_and_a_broken_one_are_named(logs: TwoLogs, store: Store) -> None:
    name = str(logs.object(1))
    store.call("DELETE", name.removeprefix("s3://"))
    with pytest.raises(StoreError, match=f"{name}: expected an object that is there, got none"):
        logs.stored.loader()
    store.call("PUT", name.removeprefix("s3://"), b"PAR1, but not to the end")
    with pytest.raises(ContractError, match=f"{name}: expected a whole parquet file"):
        logs.stored.loader()


def test_ranges_hold_the_columns_that_are_read(logs: TwoLogs) -> None:
    footer = read_footer(logs.object(0))
    all_columns = ranges_of(footer, 0, footer.schema.to_arrow_schema().names)
    assert len(all_columns) == 1  # row groups are small: one request
    first = footer.row_group(0).column(0)
    assert ranges_of(footer, 0, [first.path_in_schema])[0].size == first.total_compressed_size


def test_a_cache_larger_than_the_disk_is_refused(logs: TwoLogs) -> None:
    with pytest.raises(ContractError, match=r"data.cache_gb: expected 1,000 TB of free disk in .*SIDREC_CACHE"):
        logs.stored.loader(cache_gb=1e6)


# The session's folder.


SESSION = """
import sys, time
from sidrec.io.local_cache import local_file
from sidrec.io.places import place
print(local_file(place(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def _reader(path: StorePath) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SESSION, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _copy(reader: "subprocess.Popen[str]") -> Path:
    assert reader.stdout is not None
    return Path(reader.stdout.readline().strip())


def test_copies_last_as_long_as_their_processes(logs: TwoLogs, tmp_path: Path) -> None:
    path = logs.object(0)
    ending, killed = _reader(path), _reader(path)
    copies = [_copy(reader) for reader in (ending, killed)]
    assert all(copy.read_bytes() == path.read_bytes() for copy in copies)
    ending.communicate("")
    killed.kill()
    killed.wait()
    assert [copy.exists() for copy in copies] == [False, True]
    assert local_file(path).read_bytes() == path.read_bytes()  # of this process; removes what the killed one left
    assert not copies[1].exists()
    assert [folder.name for folder in (tmp_path / "cache").iterdir()] == [session().name]
    assert (session() / IN_USE).exists()


def test_ranks_of_a_machine_share_copies(logs: TwoLogs, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = logs.object(0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    store.requests()
    ranks = [_reader(path), _reader(path)]
    copies = [_copy(rank) for rank in ranks]
    assert copies[0] == copies[1]
    assert sum(request.startswith("GET") for request in store.requests()) == 1
    ranks[0].communicate("")
    assert copies[1].is_file()
    ranks[1].communicate("")
    assert not copies[1].exists()
