"""The size of the code is counted, and stays within what the project allows itself."""

from pathlib import Path

from benchmarks.code_size import code_size

MODULE = (
    "def short() -> None:\n    pass\n\n\nclass A:\n    async def longer(self) -> None:\n        pass\n        pass\n"
)


def test_a_small_tree_is_counted(tmp_path: Path) -> None:
    for room in ("sidrec", "data_prep", "launch"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("\n" * 99)
    (tmp_path / "sidrec/a.py").write_text(MODULE)
    (tmp_path / "launch/b.py").write_text("def one() -> int:\n    return 1\n")
    (tmp_path / "README.md").write_text("a\nb\n")
    assert code_size(tmp_path) == {
        "modules": 2,
        "median_lines": 5.0,
        "longest": {"module": "sidrec/a.py", "lines": 8},
        "longest_function": {"function": "sidrec/a.py:longer", "lines": 3},
        "readme_lines": 2,
    }


def test_modules_and_functions_stay_short() -> None:
    found = code_size()
    assert found["longest"]["lines"] <= 450, found["longest"]
    assert found["longest_function"]["lines"] <= 60, found["longest_function"]
