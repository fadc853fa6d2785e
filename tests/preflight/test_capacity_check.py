"""What is needed against what is there: shortages are problems that name bytes and keys."""

import re
from pathlib import Path

import pytest

from sidrec.preflight.capacity_check import (
    AvailableResources,
    available_resources,
    check_capacity,
    folder_bytes,
    nearest_existing,
)
from sidrec.preflight.resource_estimate import RankEstimate, ResourceEstimate
from sidrec.text import byte_size
from tests.preflight.planned import CPU

TABLES, STEP = (
    ResourceEstimate("tables", 600, "model.embedding_dim"),
    ResourceEstimate("a step", 300, "data.batch_size", approximate=True),
)
AVAILABLE = AvailableResources(memory=10_000, limit=20_000, shared=500, device=2_000, disk=3_000)
CHECKPOINTS = [ResourceEstimate("3 checkpoints", 2_400, "checkpoint.keep")]


def estimates(count: int, shared: int = 0, device: tuple[ResourceEstimate, ...] = ()) -> list[RankEstimate]:
    return [RankEstimate((TABLES, STEP), device, shared, 600)] * count


def states(found: list) -> dict[str, str]:
    return {finding.name: finding.state for finding in found}


def test_what_fits() -> None:
    found = check_capacity(estimates(2, shared=50), [AVAILABLE] * 2, 2, CHECKPOINTS, held=0)
    assert states(found) == {"fits memory": "ok", "fits /dev/shm": "ok", "fits disk": "ok"}
    assert found[0].found == (
        "2 rank(s) will take about 1.8 kB more (tables 1.2 kB, a step about 600 B); 10 kB free of 20 kB"
    )


def test_a_shortage_names_bytes_needed_bytes_there_and_keys() -> None:
    """Eleven ranks on one machine: 11 * 900 of 9,000."""
    available = AvailableResources(memory=9_000, limit=20_000, shared=500, device=0, disk=3_000)
    found = check_capacity(estimates(11), [available] * 11, 11, CHECKPOINTS, held=0)[0]
    assert found.state == "problem"
    assert found.found.startswith(
        "11 rank(s): expected about 9,900 bytes (tables 6.6 kB, a step about 3.3 kB), got 9,000"
    )
    assert found.repair == "change model.embedding_dim, data.batch_size, or give it more"


def test_the_machine_with_the_least_to_spare_is_named() -> None:
    """Two machines of two ranks: the second one's memory is short."""
    poor = AvailableResources(memory=1_000, limit=20_000, shared=500, device=0, disk=3_000)
    found = check_capacity(estimates(4), [AVAILABLE, AVAILABLE, poor, poor], 2, CHECKPOINTS, held=0)[0]
    assert found.state == "problem"
    assert found.found.startswith("2 rank(s) of machine 1: expected about 1,800 bytes")


@pytest.mark.parametrize(("shared", "state"), [(240, "note"), (249, "note"), (251, "problem"), (0, "ok")])
def test_dev_shm(shared: int, state: str) -> None:
    found = check_capacity(estimates(2, shared=shared), [AVAILABLE] * 2, 2, CHECKPOINTS, held=0)
    assert states(found)["fits /dev/shm"] == state


def test_gpu_memory_is_each_ranks_own() -> None:
    device = (ResourceEstimate("tables", 1_500, "parallel"),)
    crowded = AvailableResources(memory=10_000, limit=20_000, shared=500, device=1_400, disk=3_000)
    found = check_capacity(estimates(2, device=device), [AVAILABLE, crowded], 2, CHECKPOINTS, held=0)
    gpu = next(finding for finding in found if finding.name == "fits GPU memory")
    assert gpu.found == "rank 1: expected 1,500 bytes (tables 1.5 kB), got 1,400 free"


def test_checkpoints_that_are_there_already_are_not_counted_again() -> None:
    big = [ResourceEstimate("3 checkpoints", 5_000, "checkpoint.keep")]
    assert states(check_capacity(estimates(1), [AVAILABLE], 1, big, held=0))["fits disk"] == "problem"
    assert states(check_capacity(estimates(1), [AVAILABLE], 1, big, held=4_000))["fits disk"] == "ok"
    assert (
        states(check_capacity(estimates(1), [AVAILABLE], 1, big, held=9_999))["fits disk"] == "ok"
    )  # of another plan, or left over


def test_available_resources(tmp_path: Path) -> None:
    available = available_resources(tmp_path / "not" / "there" / "yet", CPU)
    assert 0 < available.memory <= available.limit
    assert available.disk > 0
    assert available.device == 0
    assert nearest_existing(tmp_path / "not" / "there") == tmp_path
    assert not (tmp_path / "not").exists()


def test_bytes_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"12345")
    (tmp_path / "a" / "b" / "two").write_bytes(b"123")
    assert folder_bytes(tmp_path / "none") == 0
    assert folder_bytes(tmp_path / "a") == 8
    assert folder_bytes(tmp_path / "a" / "b") == 3


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (1_500, "1.5 kB"), (2.5e9, "2.5 GB"), (-7e6, "-7 MB")])
def test_sizes(count: float, text: str) -> None:
    assert byte_size(count) == text
    assert re.fullmatch(r"-?[\d.,]+ \w+", text)
