"""The same models in other libraries, each with its default loop body; skipped if not installed.

FuxiCTR's DLRM lives in its repository, not in its package: PYTHONPATH must have a checkout (2.3.10, commit 0245987).
DeepCTR-Torch 0.3.0 is a package.

Shapes as in `benchmarks.criteo_rows`.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import cycle
from typing import Any

import torch

from benchmarks.criteo_rows import CARDINALITIES, COLUMNS, DENSE, CriteoRows
from benchmarks.sid_speed import Turn

DIM = 16
_DENSE_NAMES = tuple(f"I{column}" for column in range(1, DENSE + 1))


def peers(model: str, batches: Sequence[CriteoRows], steps: int) -> dict[str, Turn]:
    """Turns of `steps` steps of the models of other libraries."""
    turns = {}
    for name, build in _PEERS[model].items():
        try:
            turns[name] = build(batches, steps)
        except ImportError as missing:
            print(f"{name} takes no part: {missing}")
    return turns


def _fuxictr_dlrm(batches: Sequence[CriteoRows], steps: int) -> Turn:
    """Adam over dense gradients of the tables, which it also clips: FuxiCTR's defaults."""
    feature_map = import_module("fuxictr.features").FeatureMap("criteo", "")
    feature_map.labels = ["label"]
    feature_map.features.update({name: {"type": "numeric", "source": ""} for name in _DENSE_NAMES})
    for name, rows in zip(COLUMNS, CARDINALITIES, strict=True):
        feature_map.features[name] = {"type": "categorical", "source": "", "vocab_size": rows}
    feature_map.num_fields = len(feature_map.features)
    model = import_module("model_zoo.DLRM.src.DLRM").DLRM(
        feature_map,
        embedding_dim=DIM,
        top_mlp_units=[512, 256],
        bottom_mlp_units=[512, 256, 64],
        optimizer="adam",
        loss="binary_crossentropy",
        verbose=0,
        model_root="",
        metrics=["AUC"],
    )
    model._max_gradient_norm = 10.0  # as its fit() sets it
    inputs = cycle([_by_column(rows) for rows in batches])

    def turn() -> None:
        for _ in range(steps):
            model.train_step(next(inputs))

    return turn


def _by_column(rows: CriteoRows) -> dict[str, torch.Tensor]:
    columns = {name: rows.dense_BX[:, place : place + 1] for place, name in enumerate(_DENSE_NAMES)}
    columns |= dict(zip(COLUMNS, rows.ids_FB, strict=True))
    return columns | {"label": rows.label_B}


def _deepctr(kind: str, **options: Any) -> Callable[[Sequence[CriteoRows], int], Turn]:
    def build(batches: Sequence[CriteoRows], steps: int) -> Turn:
        """Adagrad over dense gradients, and the regularisation that is DeepCTR-Torch's default."""
        inputs = import_module("deepctr_torch.inputs")
        columns = [inputs.DenseFeat(name, 1) for name in _DENSE_NAMES]
        columns += [
            inputs.SparseFeat(name, rows, embedding_dim=DIM) for name, rows in zip(COLUMNS, CARDINALITIES, strict=True)
        ]
        model = getattr(import_module("deepctr_torch.models"), kind)(columns, columns, **options)
        model.compile("adagrad", "binary_crossentropy")
        rows = cycle([(torch.cat([one.dense_BX, one.ids_FB.t().float()], dim=1), one.label_B) for one in batches])

        def turn() -> None:
            for _ in range(steps):
                x, label_B = next(rows)
                loss = model.loss_func(model(x).squeeze(-1), label_B, reduction="sum")
                model.optim.zero_grad()
                (loss + model.get_regularization_loss() + model.aux_loss).backward()
                model.optim.step()

        return turn

    return build


_PEERS: dict[str, dict[str, Callable[[Sequence[CriteoRows], int], Turn]]] = {
    "dlrm": {"FuxiCTR DLRM": _fuxictr_dlrm},
    "dlrm_dcn": {
        "DeepCTR-Torch DCN": _deepctr("DCN", cross_num=3, cross_parameterization="matrix", dnn_hidden_units=(512, 256))
    },
    "deepfm": {"DeepCTR-Torch DeepFM": _deepctr("DeepFM", dnn_hidden_units=(256,))},
}
