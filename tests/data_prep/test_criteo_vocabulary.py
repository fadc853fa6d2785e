"""Criteo files of later days with an earlier vocabulary: ids stay, and logs made of them have maps that only grow."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.criteo import CriteoCommand
from data_prep.criteo_log import CriteoLogCommand, hexadecimal, write_log
from data_prep.criteo_rows import CATEGORICAL
from sidrec import schema
from sidrec.errors import ContractError
from sidrec.id_maps import IdMaps, check_grown, source_ids
from tests.data_prep.criteo_text import random_lines, write

LINES = [random_lines(250, seed) for seed in (4, 5)]
FIRST = 2  # the id of a vocabulary's first value


def prepared(folder: Path, name: str, day: int, **flags: object) -> Path:
    source = write(folder / f"{name}.txt", LINES[day])
    CriteoCommand((source, folder / name), threshold=2, **flags).run()  # type: ignore[arg-type]
    return folder / name


def log_of(npy: Path) -> Path:
    out = npy.with_name(f"{npy.name}-log")
    write_log(CriteoLogCommand(npy, out, "C3", test_share=0.2, width=4))
    return out


def test_values_of_an_earlier_vocabulary_keep_their_ids(tmp_path: Path) -> None:
    one = prepared(tmp_path, "one", 0)
    two = prepared(tmp_path, "two", 1, vocabulary=one)
    alone = prepared(tmp_path, "alone", 1)
    fields = [line.split("\t")[14:] for line in LINES[1]]
    ids_NC = np.load(two / "day_0_sparse.npy")
    for place, column in enumerate(CATEGORICAL):
        earlier, later, own = (np.load(folder / "vocabulary" / f"{column}.npy") for folder in (one, two, alone))
        assert later[: len(earlier)].tolist() == earlier.tolist()
        assert later[len(earlier) :].tolist() == [value for value in own if value not in earlier]
        known = {f"{value:08x}": FIRST + row for row, value in enumerate(later)} | {"": 0}
        assert ids_NC[:, place].tolist() == [known.get(row[place], 1) for row in fields]
    facts = json.loads((two / "manifest.json").read_text())
    assert "an earlier vocabulary" in facts["categorical"]["ids"]
    np.testing.assert_array_equal(np.load(two / "day_0_dense.npy"), np.load(alone / "day_0_dense.npy"))


def test_logs_of_one_vocabulary_have_maps_that_grow(tmp_path: Path) -> None:
    one = prepared(tmp_path, "one", 0)
    logs = {name: log_of(folder) for name, folder in {
        "one": one, "two": prepared(tmp_path, "two", 1, vocabulary=one), "alone": prepared(tmp_path, "alone", 1)
    }.items()}  # fmt: skip
    earlier = IdMaps.of(logs["one"])
    assert set(earlier.columns) == {"item_id", *(f"cat_{column}" for column in CATEGORICAL if column != "C3")}
    values = np.load(one / "vocabulary" / "C3.npy")
    assert source_ids(logs["one"], "item_id").to_pylist() == ["", *(f"{value:08x}" for value in values)]
    assert check_grown(earlier, "one", logs["two"]) == ""
    with pytest.raises(ContractError, match="ids that are others"):
        check_grown(earlier, "one", logs["alone"], logs["one"])
    again = CriteoLogCommand(one, logs["one"], "C3", test_share=0.2, width=4, overwrite=True)
    write_log(again)
    assert IdMaps.of(logs["one"]) == earlier


def test_hashed_ids_have_no_maps(tmp_path: Path) -> None:
    assert not IdMaps.of(log_of(prepared(tmp_path, "npy", 0, hash_rows=50)))


@pytest.mark.parametrize("values", [[], [1], [0, 10, 255, 256, 0xDEADBEEF, 2**32 - 1]])
def test_values_as_hexadecimal_text(values: list[int]) -> None:
    assert hexadecimal(np.array(values, np.uint32)).to_pylist() == [f"{value:08x}" for value in values]


def _change_a_value(folder: Path) -> None:
    path = folder / "vocabulary" / "C7.npy"
    values = np.load(path)
    np.save(path, values[::-1])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a value moved": (_change_a_value, r"vocabulary/C7\.npy.*another SHA-256"),
    "a file is missing": (lambda folder: (folder / "vocabulary" / "C1.npy").unlink(), r"vocabulary/C1\.npy"),
    "a file is cut": (
        lambda folder: (folder / "vocabulary" / "C2.npy").write_bytes(b"\x93NUMPY"),
        r"vocabulary/C2\.npy",
    ),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_vocabulary_is_refused(tmp_path: Path, kind: str) -> None:
    one = prepared(tmp_path, "one", 0)
    damage, message = DAMAGE[kind]
    damage(one)
    with pytest.raises(ContractError, match=message):
        prepared(tmp_path, "two", 1, vocabulary=one)
    assert not (tmp_path / "two").exists()


def test_hashed_folders_both_flags_and_out_itself_are_refused(tmp_path: Path) -> None:
    hashed = prepared(tmp_path, "hashed", 0, hash_rows=50)
    with pytest.raises(ContractError, match=r"--vocabulary .*hashed: expected a folder whose ids are by a vocabulary"):
        prepared(tmp_path, "two", 1, vocabulary=hashed)
    one = prepared(tmp_path, "one", 0)
    with pytest.raises(ContractError, match="--vocabulary, --hash-rows"):
        prepared(tmp_path, "two", 1, vocabulary=one, hash_rows=50)
    with pytest.raises(ContractError, match="apart from the input"):
        prepared(tmp_path, "one", 1, vocabulary=one, overwrite=True)
    assert schema.MANIFEST in {path.name for path in one.iterdir()}
