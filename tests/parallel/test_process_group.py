"""Which device a rank gets, and how long its collectives wait."""

from datetime import timedelta

import pytest
import torch
from torch import distributed as dist

from sidrec.errors import ConfigError
from sidrec.parallel.process_group import PATIENCE, device_of_rank, joined_ranks, outlast


@pytest.mark.parametrize(
    ("environment", "gpus", "device"),
    [
        ({}, 0, "cpu"),
        ({}, 1, "cuda:0"),
        ({"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}, 0, "cpu"),
        ({"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}, 8, "cuda:5"),
        ({"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8", "SIDREC_DEVICE": "cpu"}, 2, "cpu"),
        ({"SIDREC_DEVICE": "cuda"}, 1, "cuda:0"),
        ({"SIDREC_DEVICE": ""}, 1, "cuda:0"),
    ],
)
def test_the_device_of_a_rank(environment: dict[str, str], gpus: int, device: str) -> None:
    assert device_of_rank(environment, gpus) == torch.device(device)


@pytest.mark.parametrize(
    ("environment", "gpus", "sentence"),
    [
        (
            {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"},
            2,
            r"at most one for each GPU .*, 2, got 4; start 2",
        ),
        ({"SIDREC_DEVICE": "cuda"}, 0, r"SIDREC_DEVICE: expected cpu where torch sees no GPU, got 'cuda'"),
        ({"SIDREC_DEVICE": "gpu"}, 1, r"SIDREC_DEVICE: expected cpu or cuda, got 'gpu'"),
    ],
)
def test_devices_that_are_refused(environment: dict[str, str], gpus: int, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        device_of_rank(environment, gpus)


def test_collectives_outlast_the_watchdog() -> None:
    """Of every group, those that TorchRec makes for ranks of one machine among them."""
    with joined_ranks() as ranks:
        groups = [dist.group.WORLD, ranks.control, dist.new_group([0])]
        assert timeouts(groups[:2]) == [PATIENCE, PATIENCE]
        outlast(1)
        assert timeouts(groups) == [PATIENCE] * 3
        outlast(60)
        assert timeouts(groups) == [timedelta(hours=2)] * 3


def timeouts(groups: list[dist.ProcessGroup | None]) -> list[timedelta]:
    found = [group._get_backend(torch.device("cpu")).options._timeout for group in groups if group is not None]
    assert len(found) == len(groups)
    return found
