"""The measurement on a GPU runs to its end on a CPU with tiny sizes, and gives no figures of one."""

import re

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
    bound, histories, criteo = dry_run
    assert re.fullmatch(r"CPU: a copy moves [\d,.]+ GB/s, the bound", bound)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in histories.splitlines() + criteo.splitlines()}
    for name in (*gpu_step.RANKERS, "TorchRec's DLRM", "TorchRec's DLRM + SID-Coord"):
        assert all(stage in lines[name] for stage in gpu_step.STAGES.values()), lines[name]


def test_the_bytes_of_rankers_are_held_against_a_copy(dry_run: list[str]) -> None:
    copy = float(dry_run[0].split()[4].replace(",", ""))
    for line in dry_run[1].splitlines():
        if name := next((name for name in gpu_step.RANKERS if line.startswith(f"| {name} |")), None):
            found = re.search(r"\| ([\d.]+) \[.* ([\d.]+) GB, ([\d,.]+) GB/s, (\d+)% of the bound", line)
            assert found, name
            ms, gigabytes, rate, share = (float(number.replace(",", "")) for number in found.groups())
            assert rate == pytest.approx(1000 * gigabytes / ms, rel=0.1, abs=0.06)
            assert share == pytest.approx(100 * rate / copy, rel=0.1, abs=1.1)
    assert "not counted" in dry_run[2]


def test_a_dry_run_is_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_step.main(["--dry-run", "--write"])
    assert "got those of a dry run" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_step.main([])
    assert "expected a GPU, found none" in capsys.readouterr().err
