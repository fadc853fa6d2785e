"""The rule of outputs: which folders and files a command may replace, and how one takes another's place."""

from pathlib import Path

import pytest

from sidrec.io.output_folders import (
    FolderKind,
    Written,
    check_apart,
    check_replaceable,
    output_file,
    output_folder,
    replace_folder,
    restore,
)
from sidrec.schema import ContractError, read_json


def written(folder: Path) -> Written | None:
    return {"mark", "sub/data"}.__contains__ if (folder / "mark").is_file() else None


KIND = FolderKind("a folder of ours", written)


def ours(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "mark").write_text("ours")
    (folder / "sub" / "data").write_text("data")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ContractError) as refused:
        check_replaceable(folder, KIND)
    return str(refused.value)


def test_a_folder_of_ours_an_empty_and_an_absent_one_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    for folder in (ours(tmp_path / "out"), tmp_path / "empty", tmp_path / "absent"):
        check_replaceable(folder, KIND)


def test_foreign_files_are_named_and_never_more_than_three(tmp_path: Path) -> None:
    folder = ours(tmp_path / "out")
    (folder / "sub" / "notes.txt").write_text("mine")
    expected = f"{folder}: expected nothing but the files of a folder of ours to replace, got also sub/notes.txt; "
    assert refusal(folder) == expected + "move what is to be kept, or name another folder"
    for name in "abc":
        (folder / name).write_text("mine")
    assert "got also a, b, c and more; move" in refusal(folder)


def test_a_folder_without_the_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw.csv").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    expected = f"{tmp_path}: expected a folder of ours, or nothing, to replace, got a folder with notes.txt, raw.csv; "
    expected += "name another folder"
    assert refusal(tmp_path) == expected


def test_links_inside_are_somebody_elses(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = ours(tmp_path / "out")
    (folder / "linked").symlink_to(elsewhere)
    assert "got also linked" in refusal(folder)


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ours(tmp_path / "out")
    monkeypatch.chdir(folder / "sub")
    assert "the folder that this command runs in" in refusal(folder)


def test_an_output_folder_is_no_file_and_no_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        "file": "expected a folder to write, got a file; name another folder",
        "file/out": f"got a path below the file {tmp_path / 'file'}",
        "dangling": "got a link to nowhere, which is not there",
        "loop": "got a link to loop, which is not there",
        "x" * 300: "File name too long",
    }
    for name, words in cases.items():
        with pytest.raises(ContractError) as refused:
            output_folder(tmp_path / name)
        assert str(refused.value).startswith(f"{tmp_path / name}: expected a folder to write")
        assert words in str(refused.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ours(tmp_path / "out"))
    assert output_folder(tmp_path / "link") == tmp_path / "out"
    assert output_folder(tmp_path / "link" / "new") == tmp_path / "out" / "new"


@pytest.mark.parametrize(
    ("out", "given", "words"),
    [
        ("in", "in", "the input"),
        (".", "in", "a folder that holds the input"),
        ("in", "in/file", "a folder that holds the input"),
        ("in/out", "in", "a folder inside the input"),
        ("link", "in", "the input"),
        ("link", "in/file", "a folder that holds the input"),
        ("in", "link", "the input"),
        ("in", "alias", "a folder that holds the input"),
        ("holder", "holder/alias", "a folder that holds the input"),
        ("link/out", "in", "a folder inside the input"),
        ("in", "in/../in/file", "a folder that holds the input"),
    ],
)
def test_inputs_and_outputs_are_apart_whatever_links_lead_to_them(
    out: str, given: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("input")
    (tmp_path / "holder").mkdir()
    (tmp_path / "holder" / "alias").symlink_to(tmp_path / "in" / "file")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "alias").symlink_to("in/file")
    with pytest.raises(ContractError) as refused:
        output_folder(tmp_path / out, [tmp_path / given])
    expected = f"expected an output folder apart from the input, got {words} {tmp_path / given}; name another folder"
    assert str(refused.value) == f"{(tmp_path / out).resolve()}: {expected}"


def test_neighbours_are_apart(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("input")
    check_apart(tmp_path / "in", [tmp_path / "input", tmp_path / "absent"])
    assert output_folder(tmp_path / "input.out", [tmp_path / "input"]) == tmp_path / "input.out"


def test_a_replacement_that_fails_puts_the_old_folder_back(tmp_path: Path) -> None:
    folder = ours(tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "absent", folder, tmp_path / "former")
    assert (folder / "sub" / "data").read_text() == "data"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_replacement_keeps_the_former_folder_until_the_caller_deletes_it(tmp_path: Path) -> None:
    folder, new = ours(tmp_path / "out"), tmp_path / "new"
    new.mkdir()
    replace_folder(new, folder, tmp_path / "former")
    assert not list(folder.iterdir())
    restore(folder, tmp_path / "former")  # nothing to put back: the new one is there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["former", "out"]
    folder.rmdir()
    restore(folder, tmp_path / "former")
    assert (folder / "mark").is_file()


def test_files_of_ours_alone_are_replaced(tmp_path: Path) -> None:
    def is_ours(path: Path) -> bool:
        return read_json(path, "a plan") == {"ours": 1}

    (tmp_path / "ours.json").write_text('{"ours": 1}')
    (tmp_path / "link.json").symlink_to("ours.json")
    (tmp_path / "recipe.yaml").write_text("name: mine")
    (tmp_path / "dangling.json").symlink_to("nowhere.json")
    assert output_file(tmp_path / "new.json", "a plan", is_ours) == tmp_path / "new.json"
    assert output_file(tmp_path / "link.json", "a plan", is_ours) == tmp_path / "ours.json"
    cases = {"recipe.yaml": "another file", "dangling.json": "a link to nowhere.json", "": "a folder"}
    for name, words in cases.items():
        with pytest.raises(ContractError, match=f"expected no such file yet, or a plan to replace, got {words}"):
            output_file(tmp_path / name, "a plan", is_ours)
