"""What error messages quote: printable, on one line, and cut at a length."""

from pathlib import Path

import pytest

from sidrec.config import ConfigError, load_file
from sidrec.io.files import read_json
from sidrec.schema import ContractError
from sidrec.sid.catalog import load_catalog
from sidrec.text import LINES, LONGEST, byte_size, near_folder, short_repr


def test_quotes_stay_in_their_line_and_give_no_orders_to_a_terminal() -> None:
    error = ContractError("a\nb", "one line", "x\x1b[31m\u202ey\r\nz")
    assert str(error) == r"a b: expected one line, got x\x1b[31m\u202ey z"
    assert str(ConfigError("two mistakes:\n  a\tb\n  caf\u00e9")) == "two mistakes:\n  a\\tb\n  caf\u00e9"


def test_long_quotes_are_cut() -> None:
    end = " ... (5,000 characters)"
    assert str(ContractError("a", "b", "x" * 5000)) == f"a: expected b, got {'x' * (LONGEST - len(end))}{end}"
    message = str(ConfigError(f"{'x/' * 3000}: expected a file, got none"))
    assert message.startswith("x/x/")
    assert message.endswith("x/: expected a file, got none")
    assert len(message) == LONGEST
    assert str(ConfigError("\n".join("a" * 100))).splitlines()[LINES:] == ["  ... and 60 lines more"]


def test_an_error_can_leave_its_process() -> None:
    error = ContractError("a", "b", "x" * 5000)
    assert str(type(error)(*error.args)) == str(error)


def test_a_repeated_value_is_shown_once() -> None:
    bomb: list[object] = ["x"] * 9
    for _ in range(50):  # 9^50 values, and all but the first few the same
        bomb = [bomb] * 9
    assert len(short_repr(bomb)) < 2 * LONGEST
    assert short_repr(int("f" * 5000, 16)) == "a int of too many digits"


JSON = {
    "{": "expected valid JSON, got Expecting property name",
    '{"a": 1, "b": 2, "a": 3}': "expected every key once, got a twice",
    "[" * 100_000: "expected valid JSON, got values nested too deep",
    "[NaN]": "expected valid JSON, got the number NaN",
    "9" * 5000: "expected valid JSON, got Exceeds the limit",
    "\xff": "expected valid JSON, got 'utf-8' codec can't decode",
    '["\\ud800"]': "expected valid JSON, got 'utf-8' codec can't encode",
}


@pytest.mark.parametrize("text", JSON, ids=[text[:20].encode("ascii", "replace").decode() for text in JSON])
def test_what_is_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ContractError) as refused:
        read_json(tmp_path / "a.json", "an a")
    assert str(refused.value).startswith(f"{tmp_path / 'a.json'}: {JSON[text]}")


def test_a_device_that_never_ends_is_not_read() -> None:
    with pytest.raises(ContractError, match="/dev/zero: expected an a, got a device"):
        read_json(Path("/dev/zero"), "an a")


@pytest.mark.parametrize("name", ["missing", "folder", "loop"])
def test_no_file_to_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ContractError, match=f"{name}: expected an a, got "):
        read_json(tmp_path / name, "an a")


def test_a_recipe_of_aliases_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["name: [x]", "a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"mistake\(s\) in the recipe") as refused:
        load_file(tmp_path / "recipe.yaml")
    assert "a19: " in str(refused.value)


def test_deep_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: " + "[" * 5000)
    with pytest.raises(ConfigError, match="expected valid YAML, got "):
        load_file(tmp_path / "recipe.yaml")


def test_yaml_of_megabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: [" + '"x",' * 300_000)
    with pytest.raises(ConfigError, match="expected a recipe of at most 1,048,576 bytes, got a larger file"):
        load_file(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999.4, "999 B"),
        (999.6, "1 kB"),
        (1000, "1 kB"),
        (3400, "3.4 kB"),
        (999.4e3, "999 kB"),
        (999.6e3, "1 MB"),
        (999.6e6, "1 GB"),
        (1.25e9, "1.25 GB"),
        (999.6e9, "1 TB"),
        (999.6e12, "1,000 TB"),
        (12_345e12, "12,300 TB"),
        (-999.6e6, "-1 GB"),
    ],
)
def test_a_byte_size_changes_its_unit_after_rounding(count: float, text: str) -> None:
    assert byte_size(count) == text


def test_a_mistyped_folder_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    for name in ("beauty", "movies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "catalog.json").touch()
    there = f"; there are {tmp_path}/beauty, {tmp_path}/movies"
    assert near_folder(tmp_path / "beuaty", "catalog.json") == f"{there}; did you mean {tmp_path}/beauty?"
    assert near_folder(tmp_path / "x" / "y" / "z", "catalog.json").startswith(there)
    assert near_folder(tmp_path / "beuaty", "config.yaml") == f"; did you mean {tmp_path}/beauty?"
    with pytest.raises(ContractError, match=r"beuaty/catalog\.json: expected a catalog, .*; did you mean .*/beauty\?"):
        load_catalog(tmp_path / "beuaty")
