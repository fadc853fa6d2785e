"""Every command does what it did: exit status, files with their contents, data on stdout, and words."""

from pathlib import Path

import pytest

from tests.golden import golden_set, outputs
from tests.golden.files import without_numbers
from tests.golden.golden_set import METRICS, differences

COMMANDS, SAID = golden_set.read("commands"), golden_set.read("said")


@pytest.mark.parametrize("name", outputs.CASES)
def test_command(name: str, folder: Path) -> None:
    found = outputs.record(name, folder)
    said, allowed = found.pop("said"), golden_set.allowed(METRICS)
    assert differences(COMMANDS[name], found, allowed) == []
    if allowed.exact:
        assert said == SAID[name]
    else:
        assert {stream: without_numbers(lines) for stream, lines in said.items()} == {
            stream: without_numbers(lines) for stream, lines in SAID[name].items()
        }


def test_help_lists_every_command() -> None:
    assert outputs.listed_commands() == outputs.COMMANDS
