"""What a rank takes of its GPU, on hardware that is made up: counted by hand, and compared with what is free."""

from pathlib import Path

import pytest

from sidrec.plans.hardware import named_hardware
from sidrec.preflight import problems
from sidrec.preflight.capacity_check import AvailableResources, check_capacity
from sidrec.preflight.resource_estimate import (
    PlannedRun,
    RankEstimate,
    device_overheads,
    estimate_ranks,
    total_bytes,
)
from tests.preflight.planned import planned
from tests.small_log import small_recipe, write_small_log

MIB = 1 << 20
EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512,expandable_segments:True"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("gpu"))


def run_on(folder: Path, hardware: str, **sections: object) -> PlannedRun:
    found = named_hardware(hardware)
    return planned(small_recipe(folder, **sections), found.world, found)


def overheads(run: PlannedRun, environment: dict[str, str] | None = None) -> dict[str, int]:
    return {each.name: each.bytes for each in device_overheads(run, 1000, environment or {})}


def test_batches_buffers_and_fragments_by_hand(folder: Path) -> None:
    """Eight ranks: 2 groups of 16 channels, and 2 channels to each of 7 others, a buffer of 4 MiB each way."""
    run = run_on(folder, "8xh100")
    batches = 4 * (run.batch.packed_bytes + run.batch.unpacked_bytes)
    assert overheads(run) == {
        "table rows of items, by item id, on the GPU": 61 * 4 * len(run.tables.features),
        "batches on the GPU": batches,
        "NCCL's buffers": (2 * 16 + 2 * 7) * 2 * 4 * MIB,
        "fragments": round(0.2 * (1000 + batches)),
    }
    assert overheads(run, EXPANDABLE)["fragments"] == round(0.05 * (1000 + batches))
    plain = run_on(folder, "8xh100", parallel={"pipeline": "plain"})
    assert overheads(plain)["batches on the GPU"] == 2 * (plain.batch.packed_bytes + plain.batch.unpacked_bytes)


def test_one_rank_has_no_buffers_and_more_machines_have_more(folder: Path) -> None:
    assert overheads(run_on(folder, "1xh100"))["NCCL's buffers"] == 0
    assert overheads(run_on(folder, "2x8h100"))["NCCL's buffers"] == (2 * 16 + 2 * 15) * 2 * 4 * MIB


def test_a_gpu_takes_them_and_host_memory_does_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    run = run_on(folder, "8xh100")
    names = set(overheads(run))
    for rank in estimate_ranks(run, 50):
        assert names < {each.name for each in rank.device}
        assert not names & {each.name for each in rank.host}
        step = next(each.bytes for each in rank.device if each.name == "a step's lookups and activations")
        listed = {each.name: each.bytes for each in rank.device if each.name in names}
        assert listed == {each.name: each.bytes for each in device_overheads(run, step, {})}
    assert not any(rank.device for rank in estimate_ranks(run_on(folder, "2xcpu"), 50))


def test_a_gpu_that_would_hold_tables_and_step_only_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    run = run_on(folder, "8xh100")
    ranks = estimate_ranks(run, 50)
    names = set(overheads(run))
    without = max(total_bytes([each for each in rank.device if each.name not in names]) for rank in ranks)
    need = max(total_bytes(rank.device) for rank in ranks)
    assert without < need

    def refused(ranks: list[RankEstimate], gpu: int) -> list[str]:
        free = AvailableResources(memory=10**12, limit=10**12, shared=10**12, device=gpu, disk=10**12)
        return [each.found for each in problems(check_capacity(ranks, [free] * 8, 8, [], 0))]

    assert refused(ranks, need) == []
    (sentence,) = refused(ranks, (without + need) // 2)
    assert "expected about" in sentence
    assert "NCCL's buffers about 386 MB" in sentence
