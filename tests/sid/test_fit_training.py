"""`sidrec fit` of gradient-trained learners: journal, resuming after a kill, several processes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread

from sidrec import cli
from sidrec.config import load_file
from sidrec.errors import SidrecError
from sidrec.fit import fit_catalog
from sidrec.sid.catalog import load_catalog
from sidrec.sid.item_vectors import ItemVectors, read_item_vectors
from tests.killed import killed_when
from tests.ranks import joined, run_on_ranks
from tests.sid.gradient_recipe import TEXT, write_world
from tests.sid.item_files import write_items

ROOT = Path(__file__).parents[2]


def journal_of(catalog: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (catalog / "training.jsonl").read_text().splitlines()]


def test_the_catalog_keeps_the_journal_and_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", str(write_world(tmp_path, epochs=3))]) == 0
    journal = journal_of(tmp_path / "catalog")
    assert [entry["epoch"] for entry in journal] == [1, 2, 3]
    assert f"last epoch: {json.dumps(journal[-1])}\n" in capsys.readouterr().out
    assert imread(tmp_path / "catalog" / "pictures" / "training.png")[:, :, :3].std() > 0.05
    report = json.loads((tmp_path / "catalog" / "report.json").read_text())
    assert (report["processes"], report["resumed"]) == (1, False)
    assert not (tmp_path / ".catalog.fit").exists()


def test_killed_and_started_again_equals_uninterrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, killed = write_world(tmp_path / "whole", epochs=3), write_world(tmp_path / "killed", epochs=3)
    assert cli.main(["fit", str(whole)]) == 0
    work, scratch = tmp_path / "killed" / ".catalog.fit", tmp_path / "scratch"
    scratch.mkdir()
    program = f"from sidrec import cli; cli.main(['fit', {str(killed)!r}])"
    killed_when(work / "training.pt", ["-c", program], TMPDIR=str(scratch))
    assert (work / "training.pt").exists()
    assert not list(scratch.glob("sidrec-fit-*"))
    assert not (tmp_path / "killed" / "catalog").exists()

    capsys.readouterr()
    assert cli.main(["fit", str(killed)]) == 0
    assert f"{work}: left by a fit that did not end" in capsys.readouterr().out
    assert not work.exists()
    found, expected = tmp_path / "killed" / "catalog", tmp_path / "whole" / "catalog"
    assert load_catalog(found).fingerprint == load_catalog(expected).fingerprint
    assert journal_of(found) == journal_of(expected)
    assert json.loads((found / "report.json").read_text())["resumed"] is True


def test_a_training_refused_a_place_need_not_be_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(write_world(tmp_path))
    assert cli.main(["fit", recipe]) == 0
    assert cli.main(["fit", recipe, "--tokenizer.seed", "1"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    monkeypatch.setattr("sidrec.sid.training.trainer.Trainer._epoch", lambda *_: pytest.fail("it trained"))
    assert cli.main(["fit", recipe, "--tokenizer.seed", "1", "--overwrite"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog", "data", "recipe.yaml"]


def test_two_ranks_of_torchx_fit_one_catalog(tmp_path: Path) -> None:
    recipe = write_world(tmp_path)
    pytest.importorskip("torchx", reason="torchx is not installed; the extra launch brings it")
    torchx = str(Path(sys.executable).with_name("torchx"))
    command = [torchx, "run", "-s", "local_cwd", "-cfg", f"log_dir={tmp_path / 'logs'}", "launch/components.py:fit"]
    command += ["--recipe", str(recipe), "--ranks", "2", "--", "--tokenizer.learner.training.epochs", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(load_catalog(tmp_path / "catalog")) == 120
    assert len(journal_of(tmp_path / "catalog")) == 3
    assert json.loads((tmp_path / "catalog" / "report.json").read_text())["processes"] == 2
    printed = (next((tmp_path / "logs").rglob("combined.log"))).read_text()
    assert printed.count("last epoch: ") == 1


def outcomes(rank: int, world: int, recipes: Sequence[Sequence[Path]]) -> list[tuple[str, str]]:
    """Per case the error's type and sentence on this rank. recipes: per case, one for each rank; ranks with recipes of
    their own are on machines of their own."""
    ranks, found = joined(rank, world), []
    for case in recipes:
        os.environ["LOCAL_RANK"] = str(rank) if case[0] == case[1] else "0"
        try:
            fit_catalog(load_file(case[rank]), ranks)
            found.append(("", ""))
        except SidrecError as error:
            found.append((type(error).__name__, str(error)))
    return found


def test_two_ranks_leave_together_and_one_speaks(tmp_path: Path) -> None:
    broken, sound, fewer, kmeans, few = (tmp_path / name for name in ("broken", "sound", "fewer", "kmeans", "few"))
    cases = {folder: write_world(folder) for folder in (broken, sound, fewer, few)}
    with_nan = TEXT.copy()
    with_nan[5, 0] = np.nan
    write_items(broken / "data" / "items.parquet", np.arange(1, 121), text=with_nan)
    write_items(fewer / "data" / "items.parquet", np.arange(1, 81), text=TEXT[:80])
    write_items(few / "data" / "items.parquet", np.arange(1, 6), text=TEXT[:5])
    lone = write_world(kmeans)
    lone.write_text(lone.read_text().split("  learner:")[0] + "  learner: {kind: residual_kmeans}\n")
    collapsed = write_world(tmp_path / "collapsed", least_utilisation=1)
    same = np.repeat(TEXT[:4], 30, axis=0)
    write_items(tmp_path / "collapsed" / "data" / "items.parquet", np.arange(1, 121), text=same)
    pairs = [(cases[sound], cases[broken]), (cases[sound], cases[fewer]), (cases[few],) * 2, (lone,) * 2]
    first, second = run_on_ranks(2, outcomes, [*pairs, (collapsed,) * 2, (cases[sound],) * 2, (cases[broken],) * 2])

    nan = f"{broken}/data/items.parquet, row 5 (item 6), column text: expected finite values"
    other = f"{fewer}/data/items.parquet: expected 120 items, as another rank has, got 80 items"
    assert first[0][0] == "RankError"
    assert second[0][0] == "ContractError"
    assert second[0][1].startswith(nan)
    assert first[0][1].startswith(f"rank 1 stopped: {nan}")
    assert (first[1], second[1]) == (("RankError", f"rank 1 stopped: {other}"), ("ContractError", other))
    for case, kind, sentence in (
        (2, "ContractError", "item vectors: expected at least 8 items for codebook_size 8, got 5 items"),
        (3, "ContractError", "tokenizer.learner residual_kmeans: expected one process"),
        (4, "CollapseError", "level 1: "),
        (6, "ContractError", nan),
    ):
        assert first[case][0] == kind
        assert first[case][1].startswith(sentence)
        assert second[case] == ("RankError", f"rank 0 stopped: {first[case][1]}")
    assert first[5] == second[5] == ("", "")
    for folder in (broken, fewer, few, kmeans, tmp_path / "collapsed"):
        assert sorted(path.name for path in folder.iterdir()) == ["data", "recipe.yaml"]
    assert len(load_catalog(sound / "catalog")) == pq.read_metadata(sound / "data" / "items.parquet").num_rows


def no_read(*_: object) -> ItemVectors:
    pytest.fail("it read vectors that another rank has read")


def unseen_read(*arguments: Any) -> ItemVectors:
    """Reads, and hides a file from the machine's other ranks."""
    items = read_item_vectors(*arguments)
    (arguments[3] / "item_ids.npy").unlink()
    return items


def mapped_fits(rank: int, world: int, recipe: Path, alone: Path, scratch: Path) -> str:
    """Fits `recipe` on two ranks of one machine, the second of which must not read vectors, and `alone` as if each rank
    had a machine. Returns the error of a fit whose second rank cannot see a file of the first."""
    ranks = joined(rank, world)
    tempfile.tempdir = str(scratch)
    fit_catalog(load_file(recipe), ranks, read=no_read if rank else read_item_vectors)
    os.environ["LOCAL_RANK"] = "0"
    fit_catalog(load_file(alone), ranks)
    os.environ["LOCAL_RANK"] = str(rank)
    with pytest.raises(SidrecError, match="expected") as refusal:
        fit_catalog(load_file(recipe), ranks, read=unseen_read)
    return str(refusal.value)


def test_ranks_of_one_machine_share_one_copy_of_the_vectors(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    recipes = [write_world(tmp_path / name, epochs=1) for name in ("shared", "alone")]
    for recipe in recipes:
        losses = "kind: rqvae\n    further_losses: [{kind: collaborative}]"
        recipe.write_text(recipe.read_text().replace("kind: rqvae", losses))
    first, second = run_on_ranks(2, mapped_fits, *recipes, scratch)
    shared, alone = (load_catalog(recipe.parent / "catalog") for recipe in recipes)
    assert shared.fingerprint == alone.fingerprint
    expected = "expected a file that the first process of this machine has written for all of them"
    assert f"/item_ids.npy: {expected}, got No such file or directory" in second
    assert first == f"rank 1 stopped: {second}"
    assert list(scratch.iterdir()) == []
