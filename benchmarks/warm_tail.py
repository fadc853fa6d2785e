"""The tail slice divided into items seen in training and cold items, whose hashed ids are untrained.

    python -m benchmarks.warm_tail benchmarks/studies/rivals_beauty.yaml [--write]

Reads the predictions of a study's finished runs from their run directories. --write puts warm_tail.md into the
study's results.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sidrec.io.files import write_text
from sidrec.metrics.exact import measure
from sidrec.metrics.predictions import load_predictions
from sidrec.metrics.slices import load_item_slices
from sidrec.schema import ITEMS
from sidrec.study.definition import load_study
from sidrec.study.jobs import Run, study_runs
from sidrec.study.report import markdown_table, spread
from sidrec.train.run_directory import RunDirectory

RESULTS = Path(__file__).parent / "results"
PARTS = ("tail", "warm tail", "cold")


def main() -> None:
    """Prints a table per data set."""
    parser = argparse.ArgumentParser(description="AUC on the tail, on its warm items and on its cold ones.")
    parser.add_argument("study", type=Path)
    parser.add_argument("--write", action="store_true", help="write warm_tail.md into the study's results")
    arguments = parser.parse_args()
    study = load_study(arguments.study)
    found: dict[str, dict[str, list[list[float | None]]]] = defaultdict(lambda: defaultdict(list))
    for run in study_runs(study):
        path = RunDirectory(run.directory).predictions(study.split)
        if path.exists():
            found[run.dataset][run.variant].append(_aucs(run, path, study.split))
    text = "# The tail, its items that training has met, and its cold ones: AUC, mean over seeds\n\n" + "\n\n".join(
        f"## {dataset}\n\n{_table(variants)}" for dataset, variants in found.items()
    )
    print(text)
    if arguments.write:
        write_text(RESULTS / study.name / "warm_tail.md", text + "\n")


def _aucs(run: Run, path: Path, split: str) -> list[float | None]:
    recipe = run.checked()
    slices = load_item_slices(recipe.data.path / ITEMS, recipe.evaluate.head_share, recipe.evaluate.tail_share)
    rows = load_predictions(path, split)
    masks = dict(slices.masks(rows.item_N))
    parts: list[NDArray[np.bool_]] = [masks["tail"], masks["tail"] & ~masks["cold"], masks["cold"]]
    return [measure(rows.label_N[of_N], rows.score_N[of_N], rows.user_N[of_N])["auc"] for of_N in parts]


def _table(variants: dict[str, list[list[float | None]]]) -> str:
    rows = []
    for name, runs in variants.items():
        means = [spread(values) for values in zip(*runs, strict=True)]
        rows.append([name, len(runs), *("-" if mean is None else f"{mean['mean']:.4f}" for mean in means)])
    return markdown_table(["variant", "seeds", *PARTS], rows)


if __name__ == "__main__":
    main()
