"""`python -m tests.soak`: each campaign, a few cases long."""

from pathlib import Path

import pytest

from sidrec.io.files import read_json
from tests.soak.__main__ import main


def test_a_few_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", "--cases", "3", "--seed", "1", "--out", str(tmp_path)]) == 0
    assert read_json(tmp_path / "fuzz.json", "a result")["cases"] == 3
    assert capsys.readouterr().out.endswith(f"fuzz: 0 failed, {tmp_path / 'report.md'}\n")


def test_no_folder_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["reshard"])
    assert "expected --out OUT, got none" in capsys.readouterr().err


def test_a_few_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["commands", "--cases", "3", "--seed", "1", "--out", str(tmp_path)]) == 0
    assert "wrong arguments" in (tmp_path / "report.md").read_text().lower()
    assert capsys.readouterr().out.endswith(f"commands: 0 failed, {tmp_path / 'report.md'}\n")
