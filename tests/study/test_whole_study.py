"""Whole studies with the real trainer: forks of the warm process, fitted catalogs, a kill, a time limit, the report."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from sidrec.cli import main as sidrec
from sidrec.page.cards import MISSING
from sidrec.study.definition import Study, load_study
from sidrec.study.draws import RunDraws, draws_table
from sidrec.study.processes import Processes
from sidrec.study.results import RunResult, run_results
from sidrec.study.schedule import Schedule
from sidrec.study.standard import study_of
from tests.killed import killed_when
from tests.study.test_standard import STANDARD

WORLD = "--rows 1200 --users 60 --items 60 --branching 3 --width 9"
RECIPE: Mapping[str, Any] = {
    "name": "world",
    "data": {"catalog": "none", "batch_size": 256, "history_length": 5, "workers": 0, "lanes": 2},
    "tokenizer": {"vectors": ["text"], "learner": {"kind": "residual_kmeans", "levels": 3, "codebook_size": 3}},
    "model": {"embedding_dim": 4, "context": ["user_id"]},
    "train": {"epochs": 1},
    "parallel": {"sharding": "table_wise"},  # the search for a plan takes as long as the training
}
PAIR = ("sid_only", "recommended")
"""Variants that read the catalog."""
Key = tuple[object, ...]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a world and its recipe, in which commands run. Their studies fork one warm process."""
    folder = tmp_path_factory.mktemp("whole")

    def shared(warm: bool) -> AbstractContextManager[Processes]:
        assert warm
        return nullcontext(processes)

    with pytest.MonkeyPatch.context() as patch, Processes(warm=True) as processes:
        patch.chdir(folder)
        patch.setattr("sidrec.study.runner.Processes", shared)
        assert sidrec(["prep", "synthetic", "shop", *WORLD.split()]) == 0
        recipe = {**RECIPE, "data": {"path": str(folder / "shop"), **RECIPE["data"]}}
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        yield folder


@pytest.fixture(scope="module")
def standard(home: Path) -> Path:
    """The results of the standard study, one run."""
    assert sidrec(["study", "recipe.yaml", "--runs", "1", "--jobs", "2"]) == 0
    return home / "results/studies/recipe"


@pytest.fixture(scope="module")
def pair(standard: Path, home: Path) -> Study:
    """Two runs of PAIR that nothing interrupted. Run 0 is that of the standard study."""
    return _study(home, "recipe", home / "runs/studies", standard.parent)


def _study(home: Path, name: str, work: Path, results: Path) -> Study:
    """Trains two runs of PAIR unless `work` is new; returns the study."""
    variants = study_of(home / "recipe.yaml").variants
    tree = {
        "name": name,
        "datasets": {"shop": str(home / "recipe.yaml")},
        "variants": {variant: variants[variant] for variant in PAIR},
        "references": ["sid_only"],
        "runs": 2,
        "jobs": 2,
        "work": str(work),
        "results": str(results),
    }
    path = home / f"{name}_pair.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    if work.exists():
        assert sidrec(["study", str(path)]) == 0
    return load_study(path)


def _recorded(study: Study) -> dict[Key, RunResult]:
    return {key: found for key, found in run_results(study.results, study).read().items() if key[1] in PAIR}


def _draws(study: Study) -> dict[Key, RunDraws]:
    return {key: found for key, found in draws_table(study, study.results).read().items() if key[1] in PAIR}


def _log(study: Study) -> str:
    return (study.work / study.name / "study.log").read_text()


def _fits(log: str) -> list[str]:
    """The catalogs that were fitted to the end, in order."""
    return [Path(line.split(" fitted in ")[0].split()[-1]).name for line in log.splitlines() if " fitted in " in line]


def test_the_report_of_a_recipe_names_every_standard_variant(standard: Path) -> None:
    text = (standard / "report.md").read_text()
    summary = json.loads((standard / "summary.json").read_text())
    assert list(summary["shop"]) == STANDARD
    for name in STANDARD:
        assert f"| {name} | 1 | {MISSING if name in ('hid_only', 'content') else 1} |" in text
        assert name in (standard / "report.html").read_text()
    assert "one run: the noise of training is unknown" in text


def test_variants_of_run_r_share_fit_r_which_is_fitted_once(pair: Study) -> None:
    found = _recorded(pair)
    assert set(found) == {("shop", variant, number) for variant in PAIR for number in (0, 1)}
    assert _fits(_log(pair)) == ["fit0", "fit1"], "six variants of the standard study and these runs"
    catalogs = {key: (result["fit"], result["facts"]["catalog"]) for key, result in found.items()}
    for number in (0, 1):
        assert catalogs["shop", "sid_only", number] == catalogs["shop", "recommended", number]
        assert catalogs["shop", "sid_only", number][0] == number
    assert catalogs["shop", "sid_only", 0][1] != catalogs["shop", "sid_only", 1][1]


class _Clock:
    """Passes a deadline of hours as soon as a further run is recorded."""

    def __init__(self, study: Study) -> None:
        self.study, self.before = study, len(_recorded(study))

    def __call__(self) -> float:
        return time.monotonic() + 1e6 * (len(_recorded(self.study)) > self.before)


def test_a_killed_study_ends_as_one_that_was_not(pair: Study, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the first run is recorded, then stopped by a time limit after one more run, then ended."""
    study = _study(home, "killed", home / "killed/work", home / "killed/results")
    command = ["study", str(home / "killed_pair.yaml"), "--minutes", "600"]
    sockets = home / "tmp"
    sockets.mkdir()
    killed_when(study.results / study.name / "runs.parquet", ["-m", "sidrec", *command], TMPDIR=str(sockets))
    first = _recorded(study)
    assert 1 <= len(first) <= 2
    _wait_until(lambda: not _processes(str(sockets)))

    with monkeypatch.context() as patch:
        patch.setattr("sidrec.study.runner.Schedule", partial(Schedule, clock=_Clock(study)))
        assert sidrec([*command, "--jobs", "1"]) == 0
    second = _recorded(study)
    assert len(second) == len(first) + 1
    assert f"4 runs, {len(first)} of them finished" in _log(study)
    assert f"{4 - len(second)} runs did not start in time" in _log(study)
    assert sum(len(variant["runs"]) for variant in _summary(study).values()) == len(second)

    assert sidrec(command) == 0
    third = _recorded(study)
    assert first.items() <= second.items() <= third.items(), "recorded runs are not trained again"
    assert sorted(_fits(_log(study))) == ["fit0", "fit1"]
    whole = _recorded(pair)
    assert _outcome(third) == _outcome(whole)
    assert _draws(study) == _draws(pair)


def _outcome(found: Mapping[Key, RunResult]) -> dict[Key, tuple[object, ...]]:
    return {key: (run["metrics"], run["facts"], run["recipe_hash"], run["fit"]) for key, run in found.items()}


def _summary(study: Study) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((study.results / study.name / "summary.json").read_text())["shop"]
    return summary


def _processes(argument: str) -> list[psutil.Process]:
    """The processes that have this in an argument."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(argument in word for word in process.info["cmdline"] or []):
            found.append(process)
    return found


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "waited for 300 s"
        time.sleep(0.05)
