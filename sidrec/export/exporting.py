"""`sidrec export`: a run becomes a version of a bundle, is compared with the trained model, and is published.

The bundle scores rows of a split as the trained model did. If a logit differs by more than the tolerance, nothing is
published. Another data folder and an extended catalog (`sidrec.train.evaluate_run`) bring items, but no training: rows
of tables and weights of layers stay those of the checkpoint.

Shapes: B rows of a batch, U item bags, T history positions.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

import sidrec
from sidrec.checkpoint.checkpoint_store import chosen_checkpoint
from sidrec.checkpoint.dcp_storage import load_shards
from sidrec.checkpoint.state import load_model
from sidrec.checkpoint.stored_tables import StoredCheckpoint, table_name
from sidrec.checkpoint.tensor_shard import MODEL, read_index, whole_tensor
from sidrec.checkpoint.train_state import Position, check_catalog, check_own_data, read_position
from sidrec.config import Recipe
from sidrec.config.item_parts import ManagedCollisionIndex
from sidrec.config.model import RoutesPooling
from sidrec.data.batch import Batch, PackedBatch
from sidrec.data.dataset import Dataset
from sidrec.data.loader import columns_of
from sidrec.errors import ConfigError, ContractError
from sidrec.export.calibrating import Effect, check_split, effect, fit_calibration
from sidrec.export.graph import example_inputs, write_explanation, write_graph
from sidrec.export.item_stores import ItemStores, write_context
from sidrec.id_maps import IdMaps, source_ids
from sidrec.io.files import write_text
from sidrec.io.places import Place, StorePath
from sidrec.metrics.exact import load_metrics
from sidrec.metrics.predictions import Predictions, load_predictions
from sidrec.model.history import EXPORT
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks
from sidrec.schema import ITEM_ID
from sidrec.serve.batch_scoring import texts_of
from sidrec.serve.bundle import Bundle, Description, Explained, File, Transform, file_of
from sidrec.serve.calibration import Calibration, Kind
from sidrec.serve.golden import GOLDEN, GoldenRows
from sidrec.serve.id_lookup import ids_folder, write_ids
from sidrec.serve.row_store import Precision
from sidrec.serve.scorer import EXPLAIN, REQUEST, ROWS, Model
from sidrec.serve.stored_bundles import check_stored_bundle, publish_in_store
from sidrec.serve.versions import DESCRIPTION, VERSIONS, check_bundle_folder, new_version, publish
from sidrec.train.assembly import build_training, inputs_of, open_dataset, open_loader
from sidrec.train.evaluate_run import OtherData, open_other_data, with_other_data
from sidrec.train.evaluation import score_split
from sidrec.train.run_directory import RunDirectory

TOLERANCES: Mapping[Precision, float] = {"f32": 1e-4, "f16": 2e-2, "int8": 2e-1}
"""Largest difference of a logit, by the precision of vectors."""
KNOTS = 8192
"""Intervals of AutoDis' table, for vectors that are rounded anyway: it moves logits less than half precision does."""
GOLDEN_ROWS = 64
MADE_WITH = ("torch", "torchrec", "onnx", "onnxscript")


@dataclass(frozen=True)
class Wanted:
    """precision: of vectors. tolerance: None for that of the precision. checkpoint: see `chosen_checkpoint`. rows: of
    the split that are compared, at most. calibrate: split to fit a calibration on; None for none. other: data with new
    items; None: the run's own."""

    precision: Precision = "f16"
    tolerance: float | None = None
    checkpoint: str | None = None
    rows: int = 50_000
    calibrate: str | None = None
    calibration: Kind = "isotonic"
    other: OtherData | None = None


@dataclass(frozen=True)
class Exported:
    """What was published. rows: of `split` that were compared. bytes: of the version's files. calibrated: None without
    a calibration."""

    folder: Place
    version: str
    difference: float
    rows: int
    split: str
    bytes: int
    calibrated: Effect | None


@dataclass(frozen=True)
class _Run:
    """A trained run, opened: its layers are loaded, its tables are not.

    recipe, data: those of the export, whose items may be more than the run was trained on. own: whether the data is the
    run's.
    """

    path: Path
    recipe: Recipe
    data: Dataset
    own: bool
    checkpoint: StoredCheckpoint
    position: Position
    ranker: Ranker


def export_run(path: Path, out: Path, wanted: Wanted, ranks: Ranks) -> Exported:
    """Exports the run in `path` to the bundle `out`, and puts the new version in use.

    Raises ConfigError for a recipe that cannot be exported, for a split that it cannot be calibrated on, and for scores
    that differ too much; ContractError and CheckpointError as an evaluation of the same data does.
    """
    check_bundle_folder(out)
    run = _open(path, wanted, ranks)
    split = run.recipe.evaluate.splits[0]
    if wanted.calibrate is not None:
        check_split(run.recipe, run.data.manifest, wanted.calibrate)
    expected = _trained_scores(run, split, ranks)
    calibration = _calibration(run, wanted, expected, ranks)
    with new_version(out) as partial:
        about = _write(run, partial, wanted)
        difference, rows, golden = _compare(run, Bundle(partial, check=False), expected, wanted.rows, ranks)
        if not difference <= about.tolerance:
            raise ConfigError(
                f"{path}: expected logits of the bundle within {about.tolerance:g} of the trained model's on {rows:,} "
                f"rows of {split}, got {difference:.3g}; --store f32 keeps all digits, --tolerance allows more"
            )
        golden.save(partial / GOLDEN)
        about = replace(about, difference=difference, calibration=calibration, files=_files(partial))
        write_text(partial / DESCRIPTION, about.text())
        Model(Bundle(partial, check=False), threads=1)  # replays the golden rows, also as requests
        folder = publish(out, partial, about.version)
    size = sum(of.bytes for of in about.files.values())
    calibrated = None if calibration is None else effect(calibration, expected)
    return Exported(folder, about.version, difference, rows, split, size, calibrated)


def export_to_store(path: Path, out: StorePath, wanted: Wanted, ranks: Ranks) -> Exported:
    """`export_run` to a bundle in a store, by way of local disk. Raises StoreError too."""
    check_stored_bundle(out)
    with tempfile.TemporaryDirectory(prefix="sidrec-export-") as folder:
        bundle = Path(folder) / "bundle"
        made = export_run(path, bundle, wanted, ranks)
        publish_in_store(bundle / VERSIONS / made.version, made.version, out)
        return replace(made, folder=out / VERSIONS / made.version)


def _calibration(run: _Run, wanted: Wanted, scored: Predictions, ranks: Ranks) -> Calibration | None:
    """scored: of the split that is compared; another one's are read or made."""
    if wanted.calibrate is None:
        return None
    if wanted.calibrate != scored.split:
        scored = _trained_scores(run, wanted.calibrate, ranks)
    return fit_calibration(wanted.calibration, scored)


def _open(path: Path, wanted: Wanted, ranks: Ranks) -> _Run:
    run = RunDirectory(path)
    recipe = run.recipe()
    recipe = replace(recipe, parallel=replace(recipe.parallel, plan=None))
    refuse(recipe, grown=wanted.other is not None)
    saved = chosen_checkpoint(run.checkpoints, wanted.checkpoint, ranks)
    position = read_position(saved)
    if wanted.other is None:
        data = open_dataset(recipe, ranks)
        check_own_data(saved, position, data, inputs_of(recipe, data))
        check_catalog(saved, position, data.fingerprint)
    else:
        own, recipe = recipe, with_other_data(recipe, wanted.other, ())
        _, data = open_other_data(recipe, own, saved, ranks)
    index = read_index(saved)
    ranker = Ranker(recipe.model, data.sizes, EXPORT).eval()  # fusion `hid_query` drops HIDs in training
    layers = [(name, value) for name, value in ranker.state_dict().items() if table_name(f"{MODEL}/{name}") is None]
    load_shards(saved, index, [whole_tensor(f"{MODEL}/{name}", value) for name, value in layers], ranks.control)
    return _Run(path, recipe, data, wanted.other is None, StoredCheckpoint(saved, index), position, ranker)


def refuse(recipe: Recipe, grown: bool = False) -> None:
    """Raises ConfigError, naming the key, for a recipe whose scores need more than a bundle holds.

    grown: whether items are to be added to those of the training.
    """
    item = recipe.model.item
    if isinstance(item.hids, ManagedCollisionIndex):
        why = "its rows belong to ids only within the training that assigns them"
        raise ConfigError(f"model.item.hid_index: expected exact or modulo for an export, got managed_collision: {why}")
    if isinstance(recipe.model.history_pooling, RoutesPooling):
        why = "the loader chooses the items of a route by search in long histories, which no bundle does yet"
        raise ConfigError(f"model.history_pooling: expected another kind for an export, got routes: {why}")
    if grown and item.sids is not None and item.sids.subwords is not None:
        why = "its subwords are learned from one log, and another one has others"
        raise ConfigError(f"model.item.tokens: expected granularities for an export with --data, got spm: {why}")


def _write(run: _Run, folder: Path, wanted: Wanted) -> Description:
    """Writes all files, and a description that does not know them and in which the difference is still 0."""
    recipe, data, tables = run.recipe, run.data, run.checkpoint.tables
    try:
        items = ItemStores(folder, recipe, data, run.ranker, tables, wanted.precision)
        stores, granularities = items.write(), items.write_weights()
        context = write_context(folder, data, tables, wanted.precision)
    except ValueError as error:
        raise ConfigError(f"{run.path}: --store {wanted.precision}: {error}") from None
    inputs, knots = example_inputs(recipe.model, data.sizes), 0 if wanted.precision == "f32" else KNOTS
    write_graph(run.ranker, inputs, folder / ROWS, knots=knots)
    write_graph(run.ranker, inputs, folder / REQUEST, shared=True, knots=knots)
    explained = Explained(write_explanation(run.ranker, inputs, folder / EXPLAIN, knots), granularities)
    manifest = data.manifest
    dense = columns_of(recipe.data, recipe.model, manifest).log.dense
    about = Description(
        run=str(run.path),
        step=run.position.step,
        recipe=recipe.name,
        catalog=data.fingerprint or "",
        id_maps=IdMaps(manifest.id_maps).fingerprint if manifest.id_maps else "",
        items=manifest.ids[ITEM_ID],
        history_length=recipe.data.history_length,
        dense=dense,
        stats=manifest.stats,
        context=context,
        stores=stores,
        ids=_write_ids(run, folder),
        tolerance=TOLERANCES[wanted.precision] if wanted.tolerance is None else wanted.tolerance,
        difference=0.0,
        made_with={"sidrec": sidrec.__version__, **{name: installed(name) for name in MADE_WITH}},
        transforms={
            name: Transform(of.source, of.mean, of.deviation, f"{name}_missing" if f"{name}_missing" in dense else "")
            for name, of in manifest.transforms.items()
            if name in dense
        },
        explained=explained,
    )
    write_text(folder / DESCRIPTION, about.text())
    return about


def _files(folder: Path) -> dict[str, File]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DESCRIPTION)
    return {str(path.relative_to(folder)): file_of(path) for path in paths}


def _write_ids(run: _Run, folder: Path) -> dict[str, int]:
    """Writes the index of every id column that has a map. Returns their seeds.

    Of context columns, those ids that the run has a row for: later ones are unknown to it.
    """
    seeds, rows = {}, run.data.sizes.context_rows
    for column in {ITEM_ID, *rows} & run.data.manifest.id_maps.keys():
        known = source_ids(run.recipe.data.path, column)
        known = known if column == ITEM_ID else known.slice(0, rows[column] - 1)
        texts = known.cast(pa.large_string()).combine_chunks()
        seeds[column] = write_ids(ids_folder(folder, column), texts_of(texts))
    return seeds


# Comparison with the trained model.


def _compare(
    run: _Run, bundle: Bundle, expected: Predictions, most: int, ranks: Ranks
) -> tuple[float, int, GoldenRows]:
    """The largest difference of a logit, the rows that were compared, and golden ones of the first batch.

    expected: the trained model's predictions of the split.
    """
    model, largest, rows, golden = Model(bundle, threads=1), 0.0, 0, None
    for packed in _batches(run, expected.split, ranks):
        batch = packed.to(torch.device("cpu"))
        kept_B = (batch.weight_B > 0).numpy()
        found_B = model.run(ROWS, row_inputs(bundle, packed, batch))[kept_B]
        row_B = batch.row_B.numpy()[kept_B]
        place_B = np.searchsorted(expected.row_N, row_B)
        assert (expected.row_N[place_B] == row_B).all(), "each row has a score of the trained model"
        logit_B = expected.score_N[place_B]
        largest = float(np.abs(found_B - logit_B).max(initial=largest))
        rows += len(found_B)
        if golden is None and len(found_B):
            golden = _golden(packed, batch, np.flatnonzero(kept_B)[:GOLDEN_ROWS], logit_B[:GOLDEN_ROWS])
        if rows >= most:
            break
    if golden is None:
        raise ContractError(f"{run.path}, split {expected.split}", "rows to compare the bundle with", "none")
    return largest, rows, golden


def _golden(packed: PackedBatch, batch: Batch, row_M: NDArray[np.int64], logit_M: NDArray[np.float32]) -> GoldenRows:
    """These M rows of a batch."""
    id_U, context = _ids(packed), {}
    for name, ids in batch.context.to_dict().items():
        lists = np.split(ids.values().numpy(), np.cumsum(ids.lengths().numpy())[:-1])
        kept = [lists[row] for row in row_M]
        context[name] = (np.concatenate(kept).astype(np.int64), np.array([len(each) for each in kept]))
    return GoldenRows(
        item_B=id_U[batch.target_B.numpy()[row_M]],
        history_BT=id_U[batch.history_BT.numpy()[row_M]],
        stats_BS=batch.stats_BS.numpy()[row_M],
        dense_BX=batch.dense_BX.numpy()[row_M],
        context=context,
        logit_B=logit_M,
    )


def _trained_scores(run: _Run, split: str, ranks: Ranks) -> Predictions:
    """Those that the run recorded of its own data with this checkpoint, or else those of the model, which is loaded."""
    directory = RunDirectory(run.path)
    recorded: Any = load_metrics(directory.metrics) if directory.metrics.exists() else {}
    of_step = recorded.get(split, {}).get("all", {}).get("step") == run.position.step
    if run.own and of_step and directory.predictions(split).exists():
        return load_predictions(directory.predictions(split), split)
    sharded = build_training(run.recipe, run.data, ranks)
    load_model(run.checkpoint.path, sharded.model, None, ranks)
    return score_split(run.recipe, run.data, sharded.model, split, ranks)


def _batches(run: _Run, split: str, ranks: Ranks) -> Iterator[PackedBatch]:
    loader = open_loader(run.recipe, run.data, split, shuffle=False, ranks=ranks)
    try:
        yield from loader.packed_batches(0)
    finally:
        loader.close()


def row_inputs(bundle: Bundle, packed: PackedBatch, batch: Batch) -> dict[str, NDArray[Any]]:
    """A batch of the loader as inputs of the graph."""
    made: dict[str, NDArray[Any]] = {
        **bundle.of_items(_ids(packed)),
        "target": batch.target_B.numpy(),
        "history": batch.history_BT.numpy(),
        "stats": batch.stats_BS.numpy(),
        "dense": batch.dense_BX.numpy(),
    }
    for name, ids in batch.context.to_dict().items():
        made[f"context_{name}"] = bundle.context[name].means(ids.values().numpy(), ids.lengths().numpy())
    return made


def _ids(packed: PackedBatch) -> NDArray[np.int64]:
    """Item ids of a batch's bags, [U]."""
    place: Any = packed.block.places["ids_U"]
    ids_U: NDArray[np.int64] = packed.block.tensor(place).numpy().astype(np.int64)
    return ids_U
