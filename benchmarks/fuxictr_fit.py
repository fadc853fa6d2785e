"""Trains FuxiCTR's models on rows that `benchmarks.fuxictr_anchors` exported, and scores rows with them.

    PYTHON -P benchmarks/fuxictr_fit.py JOB.json

PYTHON is the interpreter of FuxiCTR's environment, which lacks sidrec. Models, training loop, loader of rows and
settings are FuxiCTR's; the models lie in a checkout of its repository, because its package lacks them. JOB.json:

    zoo: the checkout. folder: feature_map.json and the rows, as FuxiCTR reads them. dataset: their name.
    train, validation, scored: names of files of rows, without .npz. batch_size: rows of a step.
    runs: of each, model (DIN), module (model_zoo/DIN/src), settings (of the model), feature_map (of FeatureMap.load),
        seed, out: path of the results, without suffix.

Each run writes OUT.npy, the probability of every scored row, and then OUT.json. One epoch, in the order of the file.
FuxiCTR evaluates `validation` after an epoch to choose the best one: with one epoch, nothing depends on it.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("fuxictr", "torch", "numpy", "polars", "scikit-learn", "ray")


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    job = json.loads(Path(sys.argv[1]).read_text())
    for run in job["runs"]:
        scores, facts = fit(job, run)
        out = Path(run["out"])
        np.save(out.with_suffix(".npy"), scores)
        out.with_suffix(".json").write_text(json.dumps(facts))


def fit(job: Mapping[str, Any], run: Mapping[str, Any]) -> tuple["np.ndarray[Any, Any]", dict[str, Any]]:
    """Probabilities of the scored rows, and what the result records of the run."""
    import_module("fuxictr.pytorch.torch_utils").seed_everything(seed=run["seed"])
    feature_map = import_module("fuxictr.features").FeatureMap(job["dataset"], job["folder"])
    feature_map.load(f"{job['folder']}/feature_map.json", run["feature_map"])
    files = {"train_data": "train", "valid_data": "validation", "test_data": "scored"}
    train, validation, scored = import_module("fuxictr.pytorch.dataloaders").RankDataLoader(
        feature_map,
        stage="both",
        batch_size=job["batch_size"],
        shuffle=False,
        data_format="npz",
        num_workers=0,
        **{key: f"{job['folder']}/{job[name]}.npz" for key, name in files.items()},
    )
    model = model_class(job["zoo"], run)(
        feature_map,
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC"],
        monitor="AUC",
        verbose=0,
        model_root=str(checkpoints(job)),
        **run["settings"],
    )
    wall, cpu = time.perf_counter(), time.process_time()
    model.fit(train, epochs=1, validation_data=validation)
    facts = {
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "steps": len(train),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "packages": {name: version(name) for name in PACKAGES},
    }
    return model.predict(scored), facts


def model_class(zoo: str, run: Mapping[str, Any]) -> Any:
    folder = str(Path(zoo) / run["module"])
    if folder not in sys.path:
        sys.path.append(folder)
    return getattr(import_module(run["model"]), run["model"])


def checkpoints(job: Mapping[str, Any]) -> Path:
    """The folder of the epoch's weights: FuxiCTR writes into its subfolder of the data set, which must exist."""
    folder = Path(job["folder"]) / "checkpoints"
    (folder / job["dataset"]).mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
