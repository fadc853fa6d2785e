"""Several splits that are trained on: the same batches as one split that has all their rows."""

from dataclasses import replace
from pathlib import Path

import pytest

from sidrec.config import ConfigError
from sidrec.parallel.process_group import joined_ranks
from sidrec.schema import LOG, ContractError, save_manifest
from sidrec.train.ledger_check import check_ledger
from sidrec.train.run import train
from tests.data.log_files import SPLIT, Log, flat, log_of, row_numbers
from tests.data.test_loader import contents
from tests.small_log import small_recipe, write_small_log

BOTH = (SPLIT, "validation")
EVALUATED = "data.train_on: expected splits that are not evaluated, got "


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Log, Log]:
    """The same four files: all of the train split, and the last two of another split."""
    whole, cut = (log_of(tmp_path / name, 129) for name in ("whole", "cut"))
    files = cut.manifest.files(SPLIT)
    splits = {SPLIT: files[:2], "validation": files[2:]}
    save_manifest(replace(cut.manifest, splits=splits), cut.folder / LOG)
    return whole, cut


@pytest.mark.parametrize("order", ["shuffled", "time"])
def test_batches_are_those_of_one_split_with_all_rows(logs: tuple[Log, Log], order: str) -> None:
    whole, cut = logs[0].loader(order=order), logs[1].loader(order=order, split=BOTH)
    assert (cut.rows, cut.steps) == (129, whole.steps)
    for epoch, first_step in ((0, 0), (1, 0), (1, whole.steps - 2)):  # the last: resumed inside the second split
        assert contents(list(cut.batches(epoch, first_step))) == contents(list(whole.batches(epoch, first_step)))


def test_two_ranks_read_the_rows_of_one(logs: tuple[Log, Log]) -> None:
    alone = row_numbers(logs[1].loader(split=BOTH).batches(0))
    halves = [row_numbers(logs[1].loader(rank=rank, world=2, split=BOTH).batches(0)) for rank in range(2)]
    assert [first + second for first, second in zip(*halves, strict=True)] == alone
    assert sorted(flat(alone)) == list(range(129))


def test_row_groups_of_splits_that_overlap_are_in_time_order(logs: tuple[Log, Log]) -> None:
    loader = logs[1].loader(split=("validation", SPLIT), shuffle=False)
    groups = loader.reader.groups
    assert [group.earliest for group in groups] == sorted(group.earliest for group in groups)
    assert groups[0].first_row == 49  # numbered after the 49 rows of validation, which were named first


def _split_small_log(folder: Path) -> None:
    """Calls the 200 test rows of the small log validation too, next to its 600 train rows."""
    write_small_log(folder)
    manifest = Log(folder / "data").manifest
    splits = {**manifest.splits, "validation": manifest.splits["test"]}
    save_manifest(replace(manifest, splits=splits), folder / "data" / LOG)


def test_a_run_trains_on_every_row_of_its_splits_once_an_epoch(tmp_path: Path) -> None:
    _split_small_log(tmp_path)
    recipe = small_recipe(tmp_path, data={"train_on": BOTH}, train={"row_ledger": True})
    with joined_ranks() as ranks:
        assert train(recipe, ranks) == 0
    assert [(rows.once, rows.missing, rows.repeated) for rows in check_ledger(recipe.run)] == [(800, (), ())] * 2


def test_a_split_that_the_log_lacks_is_refused(logs: tuple[Log, Log]) -> None:
    with pytest.raises(ContractError, match=r"one of the splits .*, got 'validation'"):
        logs[0].loader(split=BOTH)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"train_on": ["train", "test"]}}, f"{EVALUATED}'test'"),
        ({"data": {"train_on": BOTH}, "checkpoint": {"best": {"split": "validation"}}}, f"{EVALUATED}'validation'"),
        ({"data": {"train_on": ["train", "train"]}}, "expected every name once, got 'train' twice"),
        ({"data": {"train_on": []}}, "at least 1 item"),
    ],
)
def test_wrong_splits_are_refused(tmp_path: Path, sections: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_recipe(tmp_path, **sections)
