"""`sidrec bench` as a command: what it refuses, what it writes, and a rank that dies in the middle."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sidrec import cli
from sidrec.bench.result import load_bench
from sidrec.config import save
from tests.small_log import small_recipe, write_small_log
from tests.train.refusals import refusal

ROOT = Path(__file__).parents[2]
TABLES = """\
name: two
rows_per_step: 63
tables:
- {name: big, rows: 900, width: 8, ids_per_bag: 2}
- {name: small, rows: 90, width: 8}
"""


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    path = tmp_path / "tables.yaml"
    path.write_text(TABLES)
    return path


def test_a_bench_alone_writes_result_page_and_table(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tables.parent / "out"
    words = [
        "bench",
        "plans",
        str(tables),
        "--plans",
        "auto,torchrec,row_wise",
        "--rounds",
        "2",
        "--steps",
        "1",
        "--warm-up",
        "1",
    ]
    words += ["--rows-divisor", "9", "--rows-per-step", "32", "--out", str(out)]
    assert cli.main(words) == 0
    result = load_bench(out / "bench.json")
    assert result.complete
    assert {name: table["rows"] for name, table in result.workload["tables"].items()} == {"big": 100, "small": 10}
    assert result.workload["rows_per_rank"] == 32
    page = (out / "bench.html").read_text()
    assert "row_wise" in page
    said = capsys.readouterr().out
    assert "round 2/2  row_wise  step " in said
    assert [plan.title for plan in result.plans] == ["auto = torchrec", "row_wise"]
    assert said.count("auto = torchrec") >= 2
    assert result.conditions["slow_plans"].startswith("dropped after the first round")
    assert said.index("\nplan ") < said.index(f"\n{out / 'bench.json'}\n")

    assert (
        refusal(capsys, cli.main(words)) == f"{out / 'bench.json'}: expected no result there, or --overwrite, got one"
    )
    (out / "bench.html").unlink()
    assert cli.main(["bench", "page", str(out / "bench.json")]) == 0
    assert (out / "bench.html").read_text() == page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--plans", "auto,rowwise"], "--plans: expected auto, torchrec, data_parallel, table_wise, row_wise"),
        (["--plans", "auto,auto"], "--plans: expected one or more plans, each once, got auto twice"),
        (["--rounds", "0"], "--rounds: Input should be greater than 0, got 0"),
        (["--plans", "missing.json"], "missing.json: expected a readable sharding plan, got no such file"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(
    words: list[str], sentence: str, tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tables.parent / "out"
    assert refusal(capsys, cli.main(["bench", "plans", str(tables), "--out", str(out), *words])).startswith(sentence)
    assert not out.exists()


def test_rows_of_a_recipe_are_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small_log(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    save(small_recipe(tmp_path), recipe)
    expected = f"--rows-per-step, --rows-divisor: expected a tables file with them, got the recipe {recipe}"
    assert refusal(capsys, cli.main(["bench", "plans", str(recipe), "--rows-divisor", "2"])) == expected


def test_a_recipe_takes_its_flags_and_tables_take_none(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small_log(tmp_path)
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    save(small_recipe(tmp_path), recipe)
    words = ["--plans", "auto", "--rounds", "1", "--steps", "1", "--warm-up", "1", "--data.batch-size", "32"]
    assert cli.main(["bench", "plans", str(recipe), "--out", str(out), *words]) == 0
    assert load_bench(out / "bench.json").workload["rows_per_rank"] == 32
    expected = "sidrec bench plans: expected no flags of a recipe with a tables file, got --data.batch-size 32"
    assert refusal(capsys, cli.main(["bench", "plans", str(tables), *words])) == expected


def test_unknown_part(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "sidrec bench: expected one of the commands plans, calibrate, page, got 'plan'; did you mean plans?"
    assert refusal(capsys, cli.main(["bench", "plan", "x"])) == expected


def start(subject: Path, *words: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    return subprocess.Popen(
        [*launcher, "--rdzv-endpoint=localhost:0", "-m", "sidrec", "bench", "plans", str(subject), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_rows_that_the_ranks_do_not_divide_end_all_of_them_with_one_sentence(tables: Path) -> None:
    process = start(tables)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    sentence = "sidrec: error: two, rows_per_step: expected a multiple of the number of ranks = 2, got 63"
    assert output.splitlines().count(sentence) == 1


def test_a_rank_that_dies_ends_the_bench_and_what_was_measured_stays(tables: Path) -> None:
    out = tables.parent / "out"
    words = ("--plans", "table_wise,row_wise", "--rounds", "5000", "--steps", "1", "--warm-up", "1")
    process = start(tables, *words, "--rows-per-step", "64", "--out", str(out))
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("round 2/") for line in lines)
    ranks = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children()}
    ranks["1"].send_signal(signal.SIGKILL)
    process.communicate(timeout=600)  # a rank that waited for the dead one would wait for gloo's 30 minutes
    assert process.returncode == 1
    assert not any(rank.is_running() for rank in ranks.values())
    result = load_bench(out / "bench.json")
    assert not result.complete
    assert [len(plan.rounds) > 0 for plan in result.plans] == [True, True]
    assert not (out / "bench.html").exists()
