"""Worker processes: the same batches in the same order, the same errors, and nothing inherited or leaked."""

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from sidrec.config.recipe import DataConfig
from sidrec.data.batch import Batch
from sidrec.data.loader import SplitLoader, loader_processes
from sidrec.schema import ContractError
from tests.data.log_files import Log, flat, log_of, row_numbers, table_of, write_log
from tests.data.test_bad_input import with_value
from tests.ranks import run_on_ranks


def contents(batches: list[Batch]) -> list[tuple[object, ...]]:
    """Everything in the batches, for comparison."""
    return [
        (
            batch.row_B.tolist(),
            batch.items.values().tolist(),
            batch.items.lengths().tolist(),
            batch.context.values().tolist(),
            batch.target_B.tolist(),
            batch.history_BT.tolist(),
            batch.dense_BX.tolist(),
            batch.weight_B.tolist(),
            float(batch.rows_per_rank),
            batch.chance_B.tolist(),
        )
        for batch in batches
    ]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_workers(tmp_path: Path, workers: int) -> None:
    log = log_of(tmp_path, 129)
    alone, helped = log.loader(workers=0), log.loader(workers=workers)
    for epoch, first_step in ((0, 0), (1, 0), (1, 5), (0, 9)):
        expected = contents(list(alone.batches(epoch, first_step)))
        assert contents(list(helped.batches(epoch, first_step))) == expected


@pytest.mark.parametrize(
    ("cores", "ranks", "processes"), [(1, 1, 1), (2, 1, 1), (8, 1, 2), (8, 2, 1), (8, 8, 1), (128, 8, 4), (256, 1, 4)]
)
def test_processes_follow_the_cores_of_a_rank_unless_the_recipe_says(cores: int, ranks: int, processes: int) -> None:
    left_out = DataConfig(path=Path("data"), catalog=Path("catalog"))
    assert loader_processes(left_out, ranks, cores) == processes
    for own in (0, 3):
        assert loader_processes(replace(left_out, workers=own), ranks, cores) == own


def test_chances_follow_the_row_at_any_number_of_ranks_and_change_with_epoch_and_seed(tmp_path: Path) -> None:
    log = log_of(tmp_path, 129)

    def chances(epoch: int, world: int = 1, seed: int = 0) -> dict[int, float]:
        batches = [
            batch for rank in range(world) for batch in log.loader(rank=rank, world=world, seed=seed).batches(epoch)
        ]
        rows, found = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("row_B", "chance_B"))
        return {row: chance for row, chance in zip(rows.tolist(), found.tolist(), strict=True) if row >= 0}

    first = chances(0)
    assert len(set(first.values())) == len(first) == 129
    assert chances(0, world=2) == first
    for other in (chances(1), chances(0, seed=1)):
        assert not set(other.values()) & set(first.values())


def test_an_epoch_that_was_left_early_does_not_show_in_the_next(tmp_path: Path) -> None:
    log = log_of(tmp_path, 129)
    loader = log.loader(workers=2)
    next(loader.batches(0))
    assert row_numbers(loader.batches(1)) == row_numbers(log.loader().batches(1))


def test_an_error_in_a_worker_has_the_same_message(tmp_path: Path) -> None:
    log = write_log(tmp_path, [with_value(table_of(40), "label", 21, 2.0)])
    sentences = []
    for workers in (0, 2):
        with pytest.raises(ContractError) as error:
            list(log.loader(workers=workers).batches(0))
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]
    assert sentences[0].endswith("row 21 of the file, column label: expected 0 or 1, got 2.0")


def test_quarantined_rows_are_counted_and_named_once_with_several_workers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = write_log(tmp_path, [with_value(table_of(80), "label", 21, 2.0)])
    loader = log.loader(workers=2, bad_rows="quarantine")
    list(loader.batches(0))
    assert loader.quarantined == 1
    assert [record.args for record in caplog.records if record.name == "sidrec.data.loader"] == [
        (f"{log.file()}, row group 2, row 21 of the file, column label: expected 0 or 1, got 2.0",)
    ]


def test_workers_inherit_nothing_from_the_training_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A fork of this process would see the patch, as it would see locks that this process's threads hold.
    log = log_of(tmp_path, 40)
    monkeypatch.setattr("sidrec.data.reader.decode", None)
    with pytest.raises(TypeError):
        next(log.loader(workers=0).batches(0))
    assert sorted(flat(row_numbers(log.loader(workers=2).batches(0)))) == list(range(40))


def children() -> list[int]:
    """Worker processes of this process, which the fork server begot."""
    return [process.pid for process in multiprocessing.active_children() if process.pid]


def worker_s_memory(folder: Path) -> str:
    """Which files a loader's worker has mapped."""
    loader = log_of(folder, 40).loader(workers=1)
    others = children()
    next(loader.batches(0))
    (worker,) = set(children()) - set(others)
    mapped = Path(f"/proc/{worker}/maps").read_text()
    loader.close()
    return mapped


def test_workers_import_no_torchrec(tmp_path: Path) -> None:
    # In a fresh process: this one's fork server may have been started by other tests, for ranks that need torchrec.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        mapped = fresh.submit(worker_s_memory, tmp_path).result()
    assert "libtorch_cpu" in mapped
    assert "fbgemm_gpu" not in mapped


def test_a_closed_loader_has_no_workers_and_can_go_on(tmp_path: Path) -> None:
    loader = log_of(tmp_path, 129).loader(workers=2)
    others = set(children())
    whole = row_numbers(loader.batches(0))
    assert len(set(children()) - others) == 2
    loader.close()
    assert not set(children()) - others
    assert row_numbers(loader.batches(0, 4)) == whole[4:]


def test_a_refusal_ends_the_workers(tmp_path: Path) -> None:
    loader = write_log(tmp_path, [with_value(table_of(40), "label", 21, 2.0)]).loader(workers=2)
    others = set(children())
    with pytest.raises(ContractError):
        list(loader.batches(0))
    assert not set(children()) - others


def test_a_batch_from_a_worker_holds_one_file_descriptor(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    loader = log_of(tmp_path, 1600).loader(workers=1)
    batches = loader.batches(0)
    held = [next(batches)]
    before = open_files()
    held += batches
    assert len(held) == 100
    assert open_files() - before <= len(held) + 5


def _rows_beside_collectives(rank: int, world: int, folder: Path) -> list[list[int]]:
    """Reads with two workers while another thread is inside gloo collectives."""
    done = torch.zeros(1)
    loader: SplitLoader = Log(folder).loader(rank=rank, world=world, workers=2)
    finished = threading.Event()

    def reduce_until_all_are_done() -> None:
        while done < world:
            done.fill_(float(finished.wait(0.001)))
            dist.all_reduce(done)

    thread = threading.Thread(target=reduce_until_all_are_done)
    thread.start()
    try:
        return row_numbers(loader.batches(0)) + row_numbers(loader.batches(1))
    finally:
        finished.set()
        thread.join()


def test_two_ranks_with_two_workers_each_and_other_threads(tmp_path: Path) -> None:
    log = log_of(tmp_path, 129)
    ranks = run_on_ranks(2, _rows_beside_collectives, tmp_path)
    expected = row_numbers(log.loader().batches(0)) + row_numbers(log.loader().batches(1))
    assert [[*a, *b] for a, b in zip(*ranks, strict=True)] == expected
