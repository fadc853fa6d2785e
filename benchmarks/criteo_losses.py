"""Whether TorchRec's DLRM learns the same from our reader of Criteo's files as from TorchRec's own.

    OMP_NUM_THREADS=1 python -m benchmarks.criteo_losses HEAD [--rows 1200000] [--days 3] [--write]

HEAD is the first rows of Kaggle's train.txt, repeated as in benchmarks.criteo_prep and prepared by data_prep.criteo
with threshold 1, so that new ids keep coming as they do in the real log. From the same first weights, a DLRM with 26
tables and fused Adagrad trains for one epoch in file order: once on the batches of InMemoryBinaryCriteoIterDataPipe,
once on those of CriteoBatches. As control it trains once more on batches whose rows CriteoBatches mixed: the same rows
in the same steps, summed in another order. A repeated head is soon known by heart: the curves tell readers apart, not
models.

--write replaces criteo_losses.json, .md and .png.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torchrec.datasets.criteo import DEFAULT_CAT_NAMES
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from tqdm import tqdm

from benchmarks.criteo_prep import write_log
from benchmarks.criteo_prep_alone import with_plain_files
from benchmarks.tables import markdown_table
from data_prep.criteo import CriteoCommand
from sidrec.data.criteo import CriteoBatches, criteo_paths
from sidrec.io.files import write_json, write_text
from sidrec.schema import MANIFEST
from sidrec.study.results import conditions

DIM, DENSE, LEARNING_RATE = 8, 13, 0.02
RESULT = Path(__file__).with_suffix(".json")
TORCHREC, OURS, MIXED = "TorchRec's reader", "CriteoBatches", "CriteoBatches, rows of a batch mixed"
LAST = 50  # steps whose mean loss the table tells


class Batches(Protocol):
    """What DLRM trains on: an iterable of batches that knows how many they are."""

    def __iter__(self) -> Any: ...

    def __len__(self) -> int: ...


def write_days(head: Path, rows: int, days: int, folder: Path) -> Path:
    """Raw day_0, day_1, ... of together at least `rows` rows, prepared; returns the folder of the .npy files."""
    log, sources = folder / "log.txt", [folder / f"day_{day}" for day in range(days)]
    write_log(head, rows, log)
    with log.open("rb") as lines:
        for source in sources:
            with source.open("wb") as file:
                file.writelines(islice(lines, -(-rows // days) if source != sources[-1] else None))
    log.unlink()
    CriteoCommand((*sources, folder / "npy"), threshold=1).run()
    return folder / "npy"


def readers(npy: Path, batch_size: int) -> dict[str, Batches]:
    """One epoch of the same batches in the same order, by contender."""
    with_plain_files()
    from torchrec.datasets.criteo import InMemoryBinaryCriteoIterDataPipe

    dense, sparse, labels = criteo_paths(npy)
    files = {"dense_paths": dense, "sparse_paths": sparse, "labels_paths": labels}
    arguments: dict[str, Any] = {"stage": "train", **files, "batch_size": batch_size, "rank": 0, "world_size": 1}
    return {
        TORCHREC: InMemoryBinaryCriteoIterDataPipe(**arguments),
        OURS: CriteoBatches(**arguments, table_rows=table_rows(npy), look="full"),
        MIXED: CriteoBatches(**arguments, shuffle_batches=True),
    }


def table_rows(npy: Path) -> list[int]:
    return json.loads((npy / MANIFEST).read_text())["categorical"]["table_rows"]


def training_losses(name: str, batches: Batches, rows: Iterable[int]) -> list[float]:
    """The loss of every step of a DLRM whose first weights depend on `rows`, those of its tables, alone."""
    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(name=f"t_{feature}", embedding_dim=DIM, num_embeddings=size, feature_names=[feature])
        for feature, size in zip(DEFAULT_CAT_NAMES, rows, strict=True)
    ]
    dlrm = DLRM(EmbeddingBagCollection(tables=tables), DENSE, [64, DIM], [64, 1])
    dense = [weight for name, weight in dlrm.named_parameters() if not name.startswith("sparse_arch")]
    fused = FusedEmbeddingBagCollection(tables, torch.optim.Adagrad, {"lr": LEARNING_RATE}, device=torch.device("cpu"))
    fused.load_state_dict(dlrm.sparse_arch.embedding_bag_collection.state_dict())
    dlrm.sparse_arch.embedding_bag_collection = fused
    optimizer, model = torch.optim.Adagrad(dense, lr=LEARNING_RATE), DLRMTrain(dlrm)
    losses: list[float] = []
    with tqdm(batches, desc=name, total=len(batches), unit="step", disable=None) as bar:
        for batch in bar:
            losses.append(_step(model, batch, optimizer))
            bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    return losses


def _step(model: DLRMTrain, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss, _ = model(batch)
    loss.backward()
    optimizer.step()
    return float(loss.item())


def differences(losses: Mapping[str, list[float]]) -> dict[str, float]:
    """Largest absolute difference to the losses with TorchRec's reader, over all steps."""
    theirs = losses[TORCHREC]
    return {name: float(np.abs(np.subtract(own, theirs)).max()) for name, own in losses.items() if own is not theirs}


def table(losses: Mapping[str, list[float]]) -> str:
    """As markdown."""
    apart = differences(losses)
    lines = [
        [
            name,
            len(own),
            f"{own[0]:.6f}",
            f"{np.mean(own[-LAST:]):.6f}",
            f"{apart[name]:.2g}" if name in apart else "-",
        ]
        for name, own in losses.items()
    ]
    header = ["trained on", "steps", "first loss", f"mean of the last {LAST}", "largest difference of a step's loss"]
    return markdown_table(header, lines)


def draw(path: Path, losses: Mapping[str, list[float]]) -> None:
    """Both curves above, below how far each is from TorchRec's."""
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, apart = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    curves.plot(losses[TORCHREC], color="#9ecae1", linewidth=5, label=TORCHREC)
    curves.plot(losses[OURS], color="#a50f15", linewidth=1, label=OURS)
    curves.set_ylabel("loss of the step")
    curves.legend(frameon=False)
    for name, color in ((MIXED, "#999999"), (OURS, "#a50f15")):
        difference = np.subtract(losses[name], losses[TORCHREC])
        apart.plot(difference, color=color, linewidth=1, label=name)
    apart.set_ylabel("loss minus that\nwith TorchRec's")
    apart.set_xlabel("step")
    apart.legend(frameon=False, fontsize=8)
    for axes in (curves, apart):
        axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)


def report(losses: Mapping[str, list[float]], facts: Mapping[str, object]) -> str:
    """Table, picture and conditions."""
    words = " ".join(__doc__.split("\n\n")[2].split())
    listed = "\n".join(f"* {name}: {value}" for name, value in facts.items())
    picture = f"![Losses by step, and their differences]({RESULT.with_suffix('.png').name})"
    title = "# DLRM on Criteo's files, read by TorchRec and by sidrec"
    return "\n\n".join([title, table(losses), picture, words, listed]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("head", type=Path)
    parser.add_argument("--rows", type=int, default=1_200_000)
    parser.add_argument("--days", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--scratch", type=Path, help="folder for the log and the files made of it")
    parser.add_argument("--write", action="store_true", help="criteo_losses.json, .md and .png beside this file")
    flags = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory(dir=flags.scratch) as folder:
        npy = write_days(flags.head, flags.rows, flags.days, Path(folder))
        tables = table_rows(npy)
        found = readers(npy, flags.batch_size)
        losses = {name: training_losses(name, batches, tables) for name, batches in found.items()}
        days = [day["rows"] for day in json.loads((npy / MANIFEST).read_text())["days"]]
    print(table(losses))
    if flags.write:
        facts = conditions() | {"rows_of_days": days, "batch_size": flags.batch_size, "table_rows": sum(tables)}
        draw(RESULT.with_suffix(".png"), losses)
        write_text(RESULT.with_suffix(".md"), report(losses, facts))
        write_json(RESULT, {"conditions": facts, "differences": differences(losses), "losses": losses})


if __name__ == "__main__":
    main()
