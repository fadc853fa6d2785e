"""The gate by exposure over a variant's seeds: `python -m benchmarks.gate_by_exposure STUDY.yaml DATASET VARIANT`.

Reads the runs' gate_<split>.json and writes gate_DATASET_VARIANT.{json,png} into the study's results.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from benchmarks import RESULTS
from sidrec.io.files import write_json
from sidrec.study.definition import load_study
from sidrec.train.gate_report import rank_correlation, rank_text


def main(argv: Sequence[str]) -> int:
    """Writes the table and the picture, and prints the Spearman correlations."""
    if len(argv) != 3:
        print("expected STUDY.yaml DATASET VARIANT, got", *argv, file=sys.stderr)
        return 2
    study = load_study(Path(argv[0]))
    dataset, variant = argv[1:]
    runs = study.work / study.name / dataset / variant
    found = [json.loads((runs / f"seed{seed}" / f"gate_{study.split}.json").read_text()) for seed in study.runs]
    gates = np.array([run["gate"] for run in found])
    ranks = [run["spearman_of_deciles"] for run in found]
    mean_rank = rank_correlation(gates.mean(axis=0).tolist())
    result = {
        "exposures": found[0]["exposures"],
        "gate_mean_over_seeds": gates.mean(axis=0).tolist(),
        "gate_by_seed": gates.tolist(),
        "spearman_by_seed": ranks,
        "spearman_of_mean": mean_rank,
    }
    target = RESULTS / study.name / f"gate_{dataset}_{variant}"
    write_json(target.with_suffix(".json"), result)
    _draw(target.with_suffix(".png"), found[0]["exposures"], gates, f"{dataset}, {variant}, {study.split}", mean_rank)
    print(f"Spearman over deciles by seed {', '.join(map(rank_text, ranks))}; of the mean {rank_text(mean_rank)}")
    return 0


def _draw(path: Path, exposures: Sequence[float], gates: np.ndarray, title: str, rank: float | None) -> None:
    figure, axes = plt.subplots(figsize=(6.8, 4.2), layout="constrained")
    positions = np.arange(gates.shape[1])
    for gate in gates:
        axes.plot(positions, gate, color="#9ecae1", linewidth=1)
    axes.plot(positions, gates.mean(axis=0), "o-", color="#08519c", label=f"mean of {len(gates)} seeds")
    axes.plot([], [], color="#9ecae1", label="single seeds")
    axes.set_xticks(positions, [f"{value:,.0f}" for value in exposures])
    axes.set_xlabel("median exposures of the target so far, by decile of rows")
    axes.set_ylabel("mean gate g (1: HID, 0: SID)")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    axes.set_title(f"{title}: Spearman over deciles {rank_text(rank)}", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
