"""Fixtures for every room, and the order of files."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidrec.io import places
from sidrec.io.places import StorePath
from tests.s3_server import Store, running_store

os.environ["COLUMNS"] = "100"  # pytest-xdist names another width to its workers; tables are printed as for no terminal

LONG = [
    "docs/test_shop_pages.py",
    "soak/test_faults.py",
    "docs/test_pages.py",
    "bench/test_bench_command.py",
    "launch/test_wheel.py",
    "data_prep/test_behavior.py",
]
"""Files that take a minute or more. They come first, so that no worker of pytest-xdist is left with one in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the long files to the front; all others keep their order."""
    here = Path(__file__).parent
    rank = {here / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True)
def _root_logger_of_its_own() -> Iterator[None]:
    """Takes away the handlers that a test leaves: they would write to its captured stderr, which is closed by then."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture(scope="session")
def running_server() -> Iterator[Store]:
    """A store in a process of its own, one for the session."""
    with running_store() as server:
        yield server


@pytest.fixture
def store(running_server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store, without faults; this process and those that it starts reach it."""
    for name, value in running_server.environment.items():
        monkeypatch.setenv(name, value)
    places._filesystem.cache_clear()
    running_server.faults()
    running_server.requests()
    yield running_server
    running_server.faults()
    places._filesystem.cache_clear()


@pytest.fixture
def bucket(store: Store, request: pytest.FixtureRequest) -> StorePath:
    """An empty bucket of the test's own."""
    name = f"b{abs(hash(request.node.nodeid)):x}"
    store.bucket(name)
    return StorePath("s3", name, "")


@pytest.fixture
def real_data() -> Path:
    """The folder of public data sets: $SIDREC_DATA, or shared/data beside the checkout. Skips where there is none."""
    folder = Path(os.environ.get("SIDREC_DATA") or Path(__file__).parents[1] / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder} (set SIDREC_DATA)")
    return folder
