"""A bundle scores as the trained model; what would not is refused; nothing half-made is left."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sidrec import cli
from sidrec.errors import ContractError
from sidrec.export.exporting import refuse
from sidrec.serve.bundle import Bundle
from sidrec.serve.scorer import Model
from sidrec.serve.versions import known_versions, use
from tests.serve.conftest import World
from tests.train.refusals import recipe_of, refusal


def test_the_bundle_is_the_trained_model(world: World) -> None:
    about = Bundle(world.bundle).description
    assert about.difference <= 1e-5
    assert (about.stats, about.dense) == (("stat_exposures", "stat_clicks"), ("int_a", "int_b"))
    assert about.items == 61
    assert about.ids.keys() == {"item_id", "user_id", "cat_a"}
    assert sorted(path.name for path in world.bundle.iterdir()) == ["CURRENT", "versions"]
    assert known_versions(world.bundle) == [about.version]


@pytest.mark.parametrize(("store", "difference"), [("f16", 1e-2), ("int8", 0.2)])
def test_smaller_stores_are_near_it_and_can_be_put_out_of_use(
    world: World, tmp_path: Path, store: str, difference: float
) -> None:
    for words in ([store], ["f32"]):
        assert cli.main(["export", str(world.run), str(tmp_path / "bundle"), "--store", *words]) == 0
    smaller, exact = known_versions(tmp_path / "bundle")
    assert Bundle(tmp_path / "bundle").version == exact
    assert cli.main(["export", "--use", smaller, str(tmp_path / "bundle")]) == 0
    found = Bundle(tmp_path / "bundle").description
    assert found.version == smaller
    assert 0 < found.difference <= difference
    sizes = [
        sum(
            of.bytes
            for file, of in Bundle(tmp_path / "bundle/versions" / name).description.files.items()
            if file.endswith(".npy")
        )
        for name in (smaller, exact)
    ]
    assert sizes[0] < sizes[1]


def test_the_same_export_is_the_same_version(world: World, tmp_path: Path) -> None:
    for _ in range(2):
        assert cli.main(["export", str(world.run), str(tmp_path / "bundle"), "--store", "f32"]) == 0
    assert len(known_versions(tmp_path / "bundle")) == 1
    names = [path.name for path in (tmp_path / "bundle/versions").iterdir()]
    assert names == known_versions(tmp_path / "bundle")


def test_scores_that_differ_too_much_are_not_published(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(world.run), str(tmp_path / "bundle"), "--store", "int8", "--tolerance", "1e-7"]
    said = refusal(capsys, cli.main(words))
    assert "expected logits of the bundle within 1e-07 of the trained model's on 200 rows of test, got" in said
    assert list((tmp_path / "bundle/versions").iterdir()) == []
    assert not (tmp_path / "bundle/CURRENT").exists()


def test_logits_that_are_not_numbers_are_not_published(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "run", lambda model, graph, inputs: np.full(len(inputs["target"]), np.nan, np.float32))
    said = refusal(capsys, cli.main(["export", str(world.run), str(tmp_path / "bundle")]))
    assert "on 200 rows of test, got nan;" in said
    assert not (tmp_path / "bundle/CURRENT").exists()


def test_a_folder_of_something_else_is_kept(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    said = refusal(capsys, cli.main(["export", str(world.run), str(tmp_path)]))
    assert "expected a bundle, an empty folder, or a path that is not there yet, got a folder with mine.txt" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_a_bundle_cannot_hold_is_refused_by_its_key(world: World) -> None:
    managed = {"item": {"kind": "hid", "hid_index": {"kind": "managed_collision", "rows": 32}}}
    with pytest.raises(ValueError, match=r"model.item.hid_index: expected exact or modulo .* got managed_collision"):
        refuse(recipe_of(world.folder, model=managed))
    with pytest.raises(ValueError, match=r"model.history_pooling: expected another kind .* got routes"):
        refuse(recipe_of(world.folder, model={"history_pooling": {"kind": "routes", "keep": 2}}))


def test_a_changed_file_is_found(world: World, tmp_path: Path) -> None:
    assert cli.main(["export", str(world.run), str(tmp_path / "bundle")]) == 0
    path = Bundle(tmp_path / "bundle").folder / "hid.f16.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ContractError, match=r"hid\.f16\.npy: expected the content that was exported, got another one"):
        Bundle(tmp_path / "bundle")
    path.write_bytes(content[:-1])
    with pytest.raises(ContractError, match=r"hid\.f16\.npy: expected .* bytes, got"):
        Bundle(tmp_path / "bundle", check=False)
    path.unlink()
    with pytest.raises(ContractError, match=r"expected a file of .* bytes, got no such file"):
        Bundle(tmp_path / "bundle", check=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 9}, "format: expected 1, got 9"),
        ({"more": 1}, r"unknown \['more'\]"),
        ({"stores": {"hid": {"size": 3}}}, "values of the types"),
        ({"context": 3}, "values of the types"),
    ],
)
def test_another_description_is_refused(world: World, tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    found = json.loads((Bundle(world.bundle).folder / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps(found | change))
    with pytest.raises(ContractError, match=sentence):
        Bundle(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"files": {"../secret": {"bytes": 6, "sha256": ""}}},
            "files: expected files within its folder, got ../secret",
        ),
        ({"files": {}, "stores": {"hid": {"precision": "f32", "index": "../x"}}}, "expected the indexes hid and sid"),
    ],
)
def test_no_description_leads_out_of_its_folder(
    world: World, tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    found = json.loads((Bundle(world.bundle).folder / "bundle.json").read_text())
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "v").mkdir()
    (tmp_path / "v/bundle.json").write_text(json.dumps(found | {"context": []} | change))
    for path in Bundle(world.bundle).folder.glob("*.npy"):
        (tmp_path / "v" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ContractError, match=re.escape(sentence)):
        Bundle(tmp_path / "v", check=False)


def test_no_bundle_is_said_as_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="got nothing"):
        Bundle(tmp_path / "none")
    with pytest.raises(ContractError, match=r"got a folder without CURRENT and bundle\.json"):
        Bundle(tmp_path)
    (tmp_path / "CURRENT").symlink_to("versions/gone")
    with pytest.raises(ContractError, match="got a link CURRENT to versions/gone"):
        Bundle(tmp_path)
    with pytest.raises(ContractError, match="expected one of none, got v1"):
        use(tmp_path, "v1")


def test_inputs_of_items(world: World) -> None:
    bundle = Bundle(world.bundle)
    found = bundle.of_items(np.array([0, 1, 50, 51]))
    assert found["has_sid"].tolist() == [False, True, True, False]
    assert not found["sid"][[0, 3]].any()
    assert not found["hid"][0].any()
    assert found["hid"][3].any()
