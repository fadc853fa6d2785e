"""What a training leaves in numbers: the loss of every step, the metrics, and the names of what a checkpoint holds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.golden import product
from tests.golden.raw import write_raw
from tests.golden.recipes import Tree, write_recipe

KNOWN_KEYS = ("step", "epoch", "samples_per_second", "skipped")
CRITEO = "criteo"
PLUG_STEPS, PLUG_ROWS, PLUG_HISTORY, PLUG_WIDTH = 30, 32, 3, 8
PLUG_ITEMS = 66  # some have no semantic id


def train(tree: Tree, folder: Path) -> dict[str, Any]:
    """Trains a recipe in `folder`, a copy of the golden artifacts, in this process. Returns its record."""
    with product.inside(folder):
        prepare_inputs(tree, folder)
        said = product.command(["train", write_recipe(tree, folder)])
        assert said.status == 0, said.err
    return record(folder / "runs" / tree["name"] / "seed0")


def train_on_ranks(trees: Sequence[Tree], folder: Path, ranks: int) -> dict[str, Any]:
    """Trains recipes one after the other on the same `ranks` processes. Returns the records by name."""
    product.on_ranks(ranks, folder, [["train", write_recipe(tree, folder)] for tree in trees])
    return {tree["name"]: record(folder / "runs" / tree["name"] / "seed0") for tree in trees}


def record(run: Path) -> dict[str, Any]:
    """Reads a run directory: every logged term by step, the metrics, and the tensors of its newest checkpoint."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    terms = [key for key in lines[-1] if key not in KNOWN_KEYS]
    found: dict[str, Any] = {term: [line[term] for line in lines] for term in terms}
    if set(found["lr_factor"]) == {1.0}:
        del found["lr_factor"]
    newest = max((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    tensors = json.loads((newest / "index.json").read_text())["tensors"]
    return {**found, "metrics": json.loads((run / "metrics.json").read_text()), "tensors": _names(tensors)}


def _names(tensors: dict[str, Any]) -> dict[str, str]:
    """A checkpoint's tensors: name -> type, shape, and the states that the optimizer has of it."""
    found = {name: f"{facts['dtype']} {facts['shape']}" for name, facts in sorted(tensors.items())}
    for name in [name for name in found if name.startswith("optimizer/")]:
        owner, _, state = name.removeprefix("optimizer/").rpartition("/")
        shape = "" if tensors[name]["shape"] == tensors[f"model/{owner}"]["shape"] else f" {tensors[name]['shape']}"
        found[f"model/{owner}"] += f" {state}{shape}"
        del found[name]
    return found


def prepare_inputs(tree: Tree, folder: Path) -> None:
    """Makes what a recipe reads beside the golden data: the Criteo log and its catalog."""
    if tree["data"]["path"] == CRITEO and not (folder / CRITEO).exists():
        write_raw(folder / "raw")
        run(product.prepare("criteo", ["raw/criteo.txt", "criteo-npy", "--threshold", "2"]))
        run(product.prepare("criteo_log", ["criteo-npy", CRITEO, "--item", "C10", "--width", "16"]))
        run(product.command(["fit", write_recipe(tree, folder)]))


def run(said: product.Said) -> product.Said:
    """Checks that a command ended well. Returns what it said."""
    assert said.status == 0, f"status {said.status}: {said.err}\n{said.out}"
    return said


def plugged(catalog: Path) -> dict[str, Any]:
    """Losses of TorchRec's DLRM with SID-Coord plugged in, on batches drawn here, and the parameters' names."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, tables = product.plugged_dlrm(catalog, PLUG_ITEMS, PLUG_WIDTH)
    in_tables = {id(parameter) for parameter in tables}
    layers = [parameter for parameter in model.parameters() if id(parameter) not in in_tables]
    optimizers = [torch.optim.Adagrad(tables, lr=0.05), torch.optim.Adam(layers, lr=0.01)]
    losses = []
    for step in range(PLUG_STEPS):
        dense, sparse, label = _batch(torch.Generator().manual_seed(step))
        loss = functional.binary_cross_entropy_with_logits(model(dense, sparse).squeeze(1), label)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    names = sorted(f"{name} {list(tensor.shape)}" for name, tensor in model.state_dict().items())
    return {"loss": losses, "tensors": names}


def _batch(random: torch.Generator) -> tuple[torch.Tensor, KeyedJaggedTensor, torch.Tensor]:
    def ids(most: int, count: int) -> torch.Tensor:
        return torch.randint(0, most, (count,), generator=random)

    dense = torch.rand(PLUG_ROWS, 5, generator=random)
    lengths = torch.cat([torch.ones(2 * PLUG_ROWS, dtype=torch.int64), ids(PLUG_HISTORY + 1, PLUG_ROWS)])
    values = torch.cat([ids(11, PLUG_ROWS), ids(PLUG_ITEMS, PLUG_ROWS + int(lengths[2 * PLUG_ROWS :].sum()))])
    label = (values[PLUG_ROWS : 2 * PLUG_ROWS] % 3 == 0).float()
    return dense, KeyedJaggedTensor(["cat", "item_id", "history"], values, lengths=lengths), label


def fit(tree: Tree, folder: Path) -> dict[str, Any]:
    """Fits a recipe's tokenizer in `folder`. Returns codes by level as text, fingerprint, quality, and what training
    ended with."""
    with product.inside(folder):
        run(product.command(["fit", write_recipe(tree, folder)]))
        path = Path(tree["data"]["catalog"])
        catalog = product.load_catalog(path)
        report = json.loads((path / "report.json").read_text())
        journal = path / "training.jsonl"
        last = json.loads(journal.read_text().splitlines()[-1]) if journal.exists() else {}
    codes = [" ".join(map(str, level)) for level in catalog.codes_NL.T.tolist()]
    timeless = {key: value for key, value in last.items() if "second" not in key}
    found = {"fingerprint": catalog.fingerprint, "items": len(catalog), "codes": codes, "quality": report["quality"]}
    return found | {"last_epoch": timeless}


def recipe_of(path: Path) -> Tree:
    """A recipe file as plain data."""
    return dict(yaml.safe_load(path.read_text()))
