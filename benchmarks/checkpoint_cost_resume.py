"""What a resumed run waits for before its first step, phase by phase; files lie in the machine's page cache."""

import subprocess
import sys
import time
from pathlib import Path

from torch import distributed as dist

from sidrec.checkpoint.checkpoint_store import newest_sound
from sidrec.checkpoint.state import load_model
from sidrec.checkpoint.train_state import restore_random_state
from sidrec.config import Recipe
from sidrec.data.dataset import Dataset
from sidrec.parallel.process_group import Ranks
from sidrec.train.assembly import build_training
from sidrec.train.optimizers import build_optimizer


def resume_phases(recipe: Recipe, data: Dataset, folder: Path, ranks: Ranks) -> dict[str, float]:
    """Seconds of what a resumed run does before its first step, beside opening its data."""
    seconds: dict[str, float] = {}
    code = "import time; s = time.perf_counter(); import sidrec.train.run; print(time.perf_counter() - s)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    seconds["import"] = float(found.stdout)

    def timed(name: str, start: float) -> None:
        dist.barrier(group=ranks.control)
        seconds[name] = time.perf_counter() - start

    dist.barrier(group=ranks.control)
    start = time.perf_counter()
    saved = newest_sound(folder, ranks, set_aside=True)
    timed("checksums", start)
    assert saved is not None, "the rounds have saved"
    start = time.perf_counter()
    model = build_training(recipe, data, ranks).model
    optimizer = build_optimizer(model, recipe.optimizer, recipe.model.embedding_dim)
    timed("plan and tables", start)
    start = time.perf_counter()
    load_model(saved, model, optimizer, ranks)
    restore_random_state(saved, 1, recipe.seed, ranks)
    timed("read", start)
    return seconds
