"""What several modules of tests start from."""

from pathlib import Path

import pytest

from tests.small_log import write_small_log
from tests.train.older_run import STATE, recipe_of
from tests.train.refusals import start


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log and a run of each Adagrad, trained on one rank."""
    folder = write_small_log(tmp_path_factory.mktemp("old"))
    for kind in STATE:
        assert start(recipe_of(folder, name=kind, optimizer={"tables": {"kind": kind}})) == 0
    return folder
