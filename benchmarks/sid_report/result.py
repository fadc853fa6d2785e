"""The committed side: RESULTS/STUDY/SETTING/ROW/seedN.json, one file per finished fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.sid_report.definition import Fit
from benchmarks.study.conditions import Conditions
from benchmarks.study.definition import Overrides
from benchmarks.study.store import read_result
from sidrec.train.run_directory import write_json


class FitResult(TypedDict):
    """One finished fit. finished: UTC.

    codes: `CodeQuality`. own, additive: `TextReconstruction`; own is null where codes and weights stand for no vectors.
    fit_cpu_seconds, fit_wall_seconds: of the fit alone, without reading vectors; CPU time of all its threads.
    encode_items_per_cpu_second: the best of three runs over all items.
    curves: name -> one value per epoch; empty for learners without epochs. fingerprint: of the catalog.
    """

    setting: str
    row: str
    seed: int
    section_hash: str
    finished: str
    tokenizer: Overrides
    conditions: Conditions
    codes: dict[str, Any]
    own: dict[str, float] | None
    additive: dict[str, float]
    fit_cpu_seconds: float
    fit_wall_seconds: float
    encode_items_per_cpu_second: float
    curves: dict[str, list[float]]
    fingerprint: str


def result_path(results: Path, fit: Fit) -> Path:
    return results / fit.study.name / fit.setting / fit.row / f"seed{fit.seed}.json"


def save_result(results: Path, fit: Fit, result: FitResult) -> None:
    path = result_path(results, fit)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


def load_result(results: Path, fit: Fit) -> FitResult | None:
    """None when there is none, or one of another section. Raises ContractError when the file is not a result."""
    result = read_result(result_path(results, fit), FitResult)
    return result if result is not None and result["section_hash"] == fit.section_hash else None


def finished(results: Path, fits: Sequence[Fit]) -> dict[str, dict[str, list[FitResult]]]:
    """Setting -> row -> results in the order of the seeds."""
    found: dict[str, dict[str, list[FitResult]]] = {}
    for fit in fits:
        result = load_result(results, fit)
        if result is not None:
            found.setdefault(fit.setting, {}).setdefault(fit.row, []).append(result)
    return found
