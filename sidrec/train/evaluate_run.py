"""`sidrec evaluate`: scores a run's data again, or another data folder, by one of the run's checkpoints.

Another folder may have more users, items and categories than the run was trained on. Ids beyond the run's tables are
unknown to it: its context tables read row 0, and items have no HID; their SIDs are used as far as the run's tables have
rows for them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sidrec.checkpoint.checkpoint_store import chosen_checkpoint
from sidrec.checkpoint.state import load_model
from sidrec.checkpoint.stored_tables import StoredCheckpoint
from sidrec.checkpoint.tensor_shard import read_index
from sidrec.checkpoint.train_state import (
    check_catalog,
    check_inputs,
    check_own_data,
    check_rows,
    read_position,
    trained_sid_rows,
)
from sidrec.config import ConfigError, Recipe
from sidrec.data.dataset import Dataset
from sidrec.data.item_tables import HID
from sidrec.errors import ContractError, print_warning
from sidrec.id_maps import IdMaps, check_grown
from sidrec.io.files import read_json, write_json
from sidrec.io.output_folders import output_folder
from sidrec.io.output_lock import OutputLock
from sidrec.io.places import Place
from sidrec.metrics.predictions import Predictions
from sidrec.parallel.process_group import Ranks, run_on_all_ranks
from sidrec.schema import ITEM_ID, LOG, load_manifest
from sidrec.train.assembly import build_training, inputs_of, open_dataset
from sidrec.train.evaluation import check_splits, evaluate_splits, score_split
from sidrec.train.run import report
from sidrec.train.run_directory import EVALUATION, EVALUATIONS, RunDirectory


def evaluate_run(path: Path, splits: tuple[str, ...], checkpoint: str | None, ranks: Ranks) -> None:
    """Computes a run's metrics and predictions again, from a checkpoint alone; writes them into the run directory.

    splits: of the log; empty for the recipe's. checkpoint: see `chosen_checkpoint`.
    Raises SidrecError on all ranks together, also if data or catalog are not those that the run was trained on.
    """
    run = RunDirectory(path)
    recipe = _recipe(run, splits, ranks)
    run_on_all_ranks(ranks, lambda: run.lock.take() if ranks.first else None)
    try:
        data = open_dataset(recipe, ranks)
        check_splits(recipe, data, ranks)
        saved = chosen_checkpoint(run.checkpoints, checkpoint, ranks)
        position = run_on_all_ranks(ranks, lambda: read_position(saved))
        run_on_all_ranks(ranks, lambda: check_own_data(saved, position, data, inputs_of(recipe, data)))
        run_on_all_ranks(ranks, lambda: check_catalog(saved, position, data.fingerprint))
        _evaluate(recipe, data, saved, position.step, run, ranks)
    finally:
        run.lock.release()


def _recipe(run: RunDirectory, splits: tuple[str, ...], ranks: Ranks) -> Recipe:
    recipe = run_on_all_ranks(ranks, run.recipe)
    recipe = replace(recipe, parallel=replace(recipe.parallel, plan=None))  # made for the ranks of the training
    return replace(recipe, evaluate=replace(recipe.evaluate, splits=splits)) if splits else recipe


def _evaluate(recipe: Recipe, data: Dataset, saved: Path, step: int, to: RunDirectory, ranks: Ranks) -> None:
    sharded = build_training(recipe, data, ranks)
    load_model(saved, sharded.model, None, ranks)
    metrics = evaluate_splits(recipe, data, sharded.model, to, step, ranks)
    if ranks.first:
        report(to, metrics, data.manifest)


# Another data folder.


@dataclass(frozen=True)
class OtherData:
    """A data folder that a run scores.

    catalog: the run's, or one extended from it; None: the catalog of the run's recipe. out: where metrics and
    predictions go; None: RUN/evaluations/NAME, with the name of the data folder.
    """

    path: Place
    catalog: Place | None = None
    out: Path | None = None


def evaluate_other_data(
    path: Path, other: OtherData, splits: tuple[str, ...], checkpoint: str | None, ranks: Ranks
) -> None:
    """Scores another data folder by a checkpoint of the run `path`; the run directory's own results stay.

    splits: of the folder's log; empty for those of the recipe that the log has.
    Raises SidrecError on all ranks together: if the folder's ids are neither the run's nor these and more, if its
    catalog is neither the run's nor extended from it, and if its columns of numbers are others or of another scale.
    """
    run = RunDirectory(path)
    own = _recipe(run, splits, ranks)
    recipe = run_on_all_ranks(ranks, lambda: with_other_data(own, other, splits))
    out = run_on_all_ranks(ranks, lambda: _out(run, recipe, other))
    with _locked_on_first_rank(out, ranks):
        run_on_all_ranks(ranks, lambda: _check_out(out, run, recipe) if ranks.first else None)
        saved = chosen_checkpoint(run.checkpoints, checkpoint, ranks)
        whole, data = open_other_data(recipe, own, saved, ranks)
        facts = _facts(run, recipe, saved, whole, data)
        run_on_all_ranks(ranks, lambda: _begin(out, facts) if ranks.first else None)
        if ranks.first:
            print(_unknown_text(facts), flush=True)
        _evaluate(recipe, data, saved, read_position(saved).step, RunDirectory(out), ranks)


def score_other_data(path: Path, other: OtherData, split: str, ranks: Ranks) -> Predictions:
    """Scores a split of another data folder by the run's best or newest checkpoint; writes nothing. other.out: unused.

    Raises as `evaluate_other_data`.
    """
    run = RunDirectory(path)
    own = _recipe(run, (split,), ranks)
    recipe = run_on_all_ranks(ranks, lambda: with_other_data(own, other, (split,)))
    saved = chosen_checkpoint(run.checkpoints, None, ranks)
    _, data = open_other_data(recipe, own, saved, ranks)
    sharded = build_training(recipe, data, ranks)
    load_model(saved, sharded.model, None, ranks)
    return score_split(recipe, data, sharded.model, split, ranks)


def with_other_data(recipe: Recipe, other: OtherData, splits: tuple[str, ...]) -> Recipe:
    """The run's recipe on another data folder. splits: empty for those of the recipe that the folder has.

    Raises ConfigError for a catalog that the item kind does not read, ContractError without a log.
    """
    if other.catalog is not None and recipe.model.item.sids is None:
        raise ConfigError(f"--catalog: expected none, as items of kind {recipe.model.item.kind} have no SIDs")
    catalog = recipe.data.catalog if other.catalog is None else other.catalog
    recipe = replace(recipe, data=replace(recipe.data, path=other.path, catalog=catalog))
    if splits:
        return recipe
    there = load_manifest(other.path / LOG).splits  # a day to be scored may have but one of the recipe's splits
    found = tuple(split for split in recipe.evaluate.splits if split in there)
    return replace(recipe, evaluate=replace(recipe.evaluate, splits=found)) if found else recipe


def open_other_data(recipe: Recipe, own: Recipe, saved: Path, ranks: Ranks) -> tuple[Dataset, Dataset]:
    """The data of `recipe`, as it is, and as the checkpoint `saved` of a run with the recipe `own` knows it.

    Raises as `evaluate_other_data`.
    """
    whole = open_dataset(recipe, ranks, moments=False)
    check_splits(recipe, whole, ranks)
    run_on_all_ranks(ranks, lambda: _check_ids(saved, recipe.data.path, own.data.path) if ranks.first else None)
    return whole, run_on_all_ranks(ranks, lambda: _as_trained(saved, recipe, whole))


def _as_trained(saved: Path, recipe: Recipe, whole: Dataset) -> Dataset:
    """The data with the checkpoint's numbers of rows. Raises CheckpointError if rows would mean something else."""
    stored, position = StoredCheckpoint(saved, read_index(saved)), read_position(saved)
    check_inputs(saved, position, inputs_of(recipe, whole))
    rows = {name: table.weight.shape[0] for name, table in stored.tables.items()}
    check_rows(saved, rows, trained_sid_rows(saved, position, whole))
    return whole.as_trained(rows)


def _check_ids(saved: Path, data: Place, own_data: Place) -> None:
    warning = check_grown(IdMaps(read_position(saved).id_maps), saved, data, own_data)
    if warning:
        print_warning(warning)


def _facts(run: RunDirectory, recipe: Recipe, saved: Path, whole: Dataset, data: Dataset) -> dict[str, object]:
    """evaluation.json. unknown: id column -> ids of the folder that the run has no row for."""
    item_rows = {name: table.rows for name, table in data.sizes.item_tables.items()}
    unknown = {
        column: whole.manifest.ids[column] - rows
        for column, rows in {**data.sizes.context_rows, **_hid_rows(recipe, item_rows)}.items()
        if whole.manifest.ids[column] > rows
    }
    return {
        "run": str(run.path.resolve()),
        "checkpoint": str(saved),
        "data": str(recipe.data.path.resolve()),
        "id_maps": IdMaps(whole.manifest.id_maps).fingerprint if whole.manifest.id_maps else None,
        "catalog": str(recipe.data.catalog) if whole.fingerprint else None,
        "catalog_fingerprint": whole.fingerprint,
        "unknown": unknown,
    }


def _hid_rows(recipe: Recipe, rows: dict[str, int]) -> dict[str, int]:
    return {ITEM_ID: rows[HID]} if recipe.model.item.hid_rows_are_ids else {}


def _unknown_text(facts: dict[str, object]) -> str:
    unknown = facts["unknown"]
    assert isinstance(unknown, dict)
    counts = ", ".join(f"{count:,} of {column}" for column, count in unknown.items()) or "none"
    return f"scoring {facts['data']} by {facts['checkpoint']}; ids that the run does not know: {counts}"


# The folder of an evaluation.


def _card(folder: Path) -> dict[str, object] | None:
    try:
        card = read_json(folder / EVALUATION, "the facts of an evaluation")
    except ContractError:
        return None
    return card if isinstance(card, dict) and {"run", "data"} <= set(card) else None


def _out(run: RunDirectory, recipe: Recipe, other: OtherData) -> Path:
    out = run.path / EVALUATIONS / other.path.resolve().name if other.out is None else other.out
    return output_folder(out, [recipe.data.path, recipe.data.catalog])


def _check_out(out: Path, run: RunDirectory, recipe: Recipe) -> None:
    """Raises ContractError if the folder holds anything but results of this run on this data, which are replaced."""
    if not out.exists() or not any(out.iterdir()):
        return
    card = _card(out)
    wanted = {"run": str(run.path.resolve()), "data": str(recipe.data.path.resolve())}
    if card is None:
        raise ContractError(out, "no files yet, or an evaluation to replace", "other files; name another --out")
    for key, value in wanted.items():
        if card[key] != value:
            expected = f"an evaluation of {key} {value} to replace"
            raise ContractError(out, expected, f"one of {key} {card[key]}; name another --out")


def _begin(out: Path, facts: dict[str, object]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / EVALUATION, facts)


@contextmanager
def _locked_on_first_rank(out: Path, ranks: Ranks) -> Iterator[None]:
    lock = OutputLock(out)
    run_on_all_ranks(ranks, lambda: lock.take() if ranks.first else None)
    try:
        yield
    finally:
        lock.release()
