"""The locks: torchx and what it holds back are in the lock of the extra launch alone."""

from pathlib import Path

import pytest

LOCKS = Path(__file__).parents[2] / "requirements"


def pins(lock: str) -> dict[str, str]:
    lines = (LOCKS / f"{lock}.txt").read_text(encoding="utf-8").splitlines()
    return {name: version for name, _, version in (line.partition("==") for line in lines) if version}


@pytest.mark.parametrize("lock", ["cpu", "cuda", "dev"])
def test_torchx_holds_nothing_back(lock: str) -> None:
    assert "torchx" not in pins(lock)
    assert "docker" not in pins(lock)
    assert int(pins(lock)["urllib3"].split(".")[0]) >= 2


def test_the_launch_lock_changes_one_pin() -> None:
    """`make .venv` installs it last, over the others."""
    others = pins("dev") | pins("cpu")
    launch = pins("launch")
    assert "torchx" in launch
    assert [name for name, version in launch.items() if others.get(name, version) != version] == ["urllib3"]
