"""The measurement on a GPU runs to its end on a CPU with tiny sizes, and gives no figures of one."""

import pytest
import torch

from benchmarks import gpu_step


@pytest.fixture(scope="module")
def dry_run() -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda text, **_: printed.append(text))
        assert gpu_step.main(["--dry-run", "--rows", "histories", "criteo"]) == 0
    return printed


def test_it_measures_every_contender_and_stage(dry_run: list[str]) -> None:
    histories, criteo = dry_run
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in histories.splitlines() + criteo.splitlines()}
    for name in (*gpu_step.RANKERS, "TorchRec's DLRM", "TorchRec's DLRM + SID-Coord"):
        assert all(stage in lines[name] for stage in gpu_step.STAGES.values()), lines[name]


def test_a_dry_run_is_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_step.main(["--dry-run", "--write"])
    assert "got those of a dry run" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_step.main([])
    assert "expected a GPU, found none" in capsys.readouterr().err
