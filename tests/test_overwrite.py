"""What commands of sidrec replace or remove is theirs: catalogs, plans, benches, tables, runs and their checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sidrec import cli
from sidrec.bench.page import write_page
from sidrec.checkpoint.checkpoint_store import remove_leftovers, remove_step
from sidrec.io.output_folders import check_replaceable, replaceable_folder
from sidrec.schema import ContractError
from sidrec.sid.catalog import CATALOG, Catalog, load_catalog
from sidrec.sid.training.trainer import remove_checkpoint
from sidrec.train.ledger_check import drop_after
from sidrec.train.run_directory import RUN
from tests.bench.bench_results import made_up
from tests.checkpoint.made_up_checkpoint import HID, grid, numbered, write_checkpoint
from tests.digests import digest
from tests.sid.item_files import clustered_vectors, write_items
from tests.small_log import write_small_log
from tests.train.refusals import recipe_of, refusal, start

ROOT = Path(__file__).parents[1]
TABLES = "name: shop\nrows_per_step: 64\ntables:\n  - {name: big, rows: 900, width: 8, ids_per_bag: 4}\n"


def said_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    return refusal(capsys, cli.main([*map(str, words)]))


# Catalogs


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    """A recipe whose catalog was fitted to FOLDER/catalog."""
    write_items(tmp_path / "data" / "items.parquet", np.arange(1, 121), text=clustered_vectors(120))
    recipe = tmp_path / "recipe.yaml"
    learner = "{kind: residual_kmeans, levels: 2, codebook_size: 8}"
    recipe.write_text(
        f"name: small\ndata: {{path: {tmp_path}/data, catalog: {tmp_path}/catalog}}\n"
        f"tokenizer: {{vectors: [text], learner: {learner}}}\n"
    )
    assert cli.main(["fit", str(recipe)]) == 0
    return recipe


def test_a_catalog_with_other_files_is_not_replaced(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = fitted.parent / "catalog"
    (catalog / "notes.txt").write_text("mine")
    before = digest(catalog)
    said = said_of(capsys, "fit", fitted, "--tokenizer.seed", 1, "--overwrite")
    expected = "expected nothing but the files of a catalog that sidrec wrote to replace, got also notes.txt; "
    assert said == f"{catalog}: {expected}move what is to be kept, or name another folder"
    assert digest(catalog) == before
    (catalog / "notes.txt").unlink()
    assert cli.main(["fit", str(fitted), "--tokenizer.seed", "1", "--overwrite"]) == 0
    assert digest(catalog).keys() == before.keys() - {"notes.txt"}


def test_a_file_that_comes_while_the_fit_runs_stops_the_replacement(
    fitted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sidrec.sid.pictures import draw_pictures

    catalog = fitted.parent / "catalog"

    def draw(*arguments: object) -> None:
        draw_pictures(*arguments)  # type: ignore[arg-type]
        (catalog / "notes.txt").write_text("mine")

    monkeypatch.setattr("sidrec.sid.pictures.draw_pictures", draw)
    first = load_catalog(catalog).fingerprint
    assert "got also notes.txt" in said_of(capsys, "fit", fitted, "--tokenizer.seed", 1, "--overwrite")
    assert load_catalog(catalog).fingerprint == first
    assert not list(fitted.parent.glob(".catalog.*"))


def test_a_linked_catalog_is_replaced_where_it_lies(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog, disk = fitted.parent / "catalog", fitted.parent / "disk"
    catalog.rename(disk)
    catalog.symlink_to(disk)
    first = load_catalog(catalog).fingerprint
    assert cli.main(["fit", str(fitted), "--tokenizer.seed", "1", "--overwrite"]) == 0
    assert catalog.is_symlink()
    assert load_catalog(disk).fingerprint != first
    catalog.unlink()
    catalog.symlink_to("nowhere")
    assert "a link to nowhere, which is not there" in said_of(capsys, "fit", fitted)


def small_catalog(seed: int = 0) -> Catalog:
    codes = np.random.default_rng(seed).integers(0, 4, (20, 2))
    return Catalog(np.arange(1, 21), codes, (4, 4))


def test_a_catalog_saved_over_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "items.parquet").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, words in (("data", "a folder with items.parquet"), ("file", "a file")):
        with pytest.raises(ContractError, match=words):
            small_catalog().save(tmp_path / name)
    assert (tmp_path / "data" / "items.parquet").read_text() == (tmp_path / "file").read_text() == "mine"


def test_killed_between_the_renames_the_catalog_comes_back(tmp_path: Path) -> None:
    small_catalog().save(tmp_path / "catalog")
    before = digest(tmp_path / "catalog")
    script = f"""
import os, signal
from pathlib import Path
import numpy as np
from sidrec.sid.catalog import Catalog
rename = Path.rename
def rename_or_die(self, target):
    if ".partial-" in self.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = rename_or_die
Catalog(np.arange(1, 3), np.zeros((2, 1), int), (4,)).save(Path("{tmp_path / "catalog"}"))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT, env=environment)
    assert done.returncode == -9
    assert not (tmp_path / "catalog").exists()
    assert digest(replaceable_folder(tmp_path / "catalog", CATALOG)) == before
    small_catalog(1).save(tmp_path / "catalog")
    assert load_catalog(tmp_path / "catalog").fingerprint == small_catalog(1).fingerprint


def test_a_fit_removes_only_its_own_checkpoint(tmp_path: Path) -> None:
    for name in ("training.pt", "training.partial", "notes.txt"):
        (tmp_path / name).write_text("")
    remove_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "notes.txt").unlink()
    remove_checkpoint(tmp_path)
    assert not tmp_path.exists()
    remove_checkpoint(tmp_path)


# Plans, benches, calibrations, pages, tables


def test_a_plan_replaces_plans_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables, plan = tmp_path / "tables.yaml", tmp_path / "plan.json"
    tables.write_text(TABLES)
    for name in ("mine.json", "tables.yaml"):
        (tmp_path / "mine.json").write_text('{"version": 1}')
        said = said_of(capsys, "plan", tables, "--export", tmp_path / name)
        assert said == f"{tmp_path / name}: expected no such file yet, or a sharding plan to replace, " + (
            "got another file; name another one"
        )
    assert tables.read_text() == TABLES
    (tmp_path / "link.json").symlink_to(plan)
    plan.write_text('{"version": 0, "world": 2, "tables": {}}')
    assert cli.main(["plan", str(tables), "--export", str(tmp_path / "link.json")]) == 0
    assert (tmp_path / "link.json").is_symlink()
    assert "big" in plan.read_text()
    assert cli.main(["plan", str(tables), "--export", str(plan)]) == 0


def test_a_calibration_does_not_replace_the_bench_that_it_is_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(made_up(["a", "b"]).as_json()))
    before = bench.read_text()
    said = said_of(capsys, "bench", "calibrate", bench, "--out", bench)
    assert "expected no such file yet, or a calibration to replace, got another file" in said
    assert bench.read_text() == before


def test_a_page_replaces_pages_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench, page, mine = tmp_path / "bench.json", tmp_path / "bench.html", tmp_path / "index.html"
    bench.write_text(json.dumps(made_up(["a", "b"]).as_json()))
    mine.write_text("<title>mine</title>")
    for _ in range(2):
        assert cli.main(["bench", "page", str(bench)]) == 0
    said = said_of(capsys, "bench", "page", bench, mine)
    assert said == f"{mine}: expected no such file yet, or the page of a bench to replace, got another file; " + (
        "name another one"
    )
    assert mine.read_text() == "<title>mine</title>"
    assert page.exists()


def test_a_bench_replaces_benches_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables, out = tmp_path / "tables.yaml", tmp_path / "out"
    tables.write_text(TABLES)
    out.mkdir()
    (out / "bench.json").write_text('{"mine": 1}')
    words = ("bench", "plans", tables, "--out", out, "--overwrite")
    assert f"{out / 'bench.json'}: expected no such file yet, or a bench of plans to replace" in said_of(capsys, *words)
    (out / "bench.json").unlink()
    (out / "bench.html").write_text("mine")
    assert "or the page of a bench to replace, got another file" in said_of(capsys, *words[:-1])
    assert [path.name for path in out.iterdir()] == ["bench.html"]
    write_page(made_up(["a"]), tmp_path / "page.html")


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
def test_a_table_replaces_exported_tables_alone(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    checkpoint = write_checkpoint(run / "checkpoints" / "step-7", {HID: grid(numbered(13, 4), 1, 1)})
    file, items = tmp_path / f"hid{suffix}", tmp_path / f"items{suffix}"
    words = ["table", "export", str(run), "hid"]
    for _ in range(2):
        assert cli.main([*words, str(file), "--overwrite"]) == 0
    if suffix == ".parquet":
        write_items(items, np.arange(1, 4), text=np.ones((3, 2)))
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.ones(2), "b": torch.ones(2)}, items)
        before = digest(checkpoint)
        said = said_of(capsys, *words, checkpoint / "rank-0.safetensors", "--overwrite")
        assert "rank-0.safetensors: expected" in said
        assert digest(checkpoint) == before
    inside = said_of(capsys, *words, checkpoint / f"new{suffix}")
    assert "expected a file apart from the checkpoint that is read" in inside
    content = items.read_bytes()
    said = said_of(capsys, *words, items, "--overwrite")
    assert "expected no such file yet, or an exported table to replace, got another file" in said
    assert items.read_bytes() == content


# Runs and their checkpoints


def test_a_run_does_not_begin_over_files_of_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small_log(tmp_path, rows=120)
    recipe = recipe_of(tmp_path)
    recipe.run.mkdir(parents=True)
    (recipe.run / "plan.json").write_text("mine")
    (recipe.run / "notes.partial.txt").write_text("mine")
    said = refusal(capsys, start(recipe))
    assert said == (
        f"{recipe.run}: expected a folder without files of a run's names, or a run of this recipe, got plan.json "
        "that no run wrote; give this run another name or move them away"
    )
    assert (recipe.run / "plan.json").read_text() == "mine"
    (recipe.run / "plan.json").unlink()
    (recipe.run / "data.partial").mkdir()
    assert start(recipe) == 0
    assert (recipe.run / "notes.partial.txt").read_text() == "mine"
    assert (recipe.run / "data.partial").is_dir()
    with pytest.raises(ContractError, match=r"got also notes.partial.txt"):
        check_replaceable(recipe.run, RUN)
    (recipe.run / "notes.partial.txt").unlink()
    check_replaceable(recipe.run, RUN)


def test_a_checkpoint_with_other_files_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {HID: grid(numbered(13, 4), 1, 1)}
    kept, gone = (write_checkpoint(tmp_path / f"step-{step}", tensors) for step in (1, 2))
    (kept / "notes.txt").write_text("mine")
    remove_step(kept)
    remove_step(gone)
    assert capsys.readouterr().err == f"sidrec: {kept}: this outdated checkpoint stays, as notes.txt is no part of it\n"
    for name in ("step-3.partial", "step-4.partial", "step-mine.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rank-0.safetensors").write_text("half")
    (tmp_path / "step-4.partial" / "notes.txt").write_text("mine")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-4.partial", "step-mine.partial"]


def test_a_ledger_keeps_files_of_other_names(tmp_path: Path) -> None:
    for name in ("steps-000000001-000000002.rank-0.partial", "steps-mine.partial", "notes.partial"):
        (tmp_path / name).write_text("")
    drop_after(tmp_path, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.partial", "steps-mine.partial"]
