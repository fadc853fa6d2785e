"""`sidrec fit`: item vectors to a catalog of semantic ids, on one process or on the ranks of torchrun.

Check the target, read the items, learn a tokenizer, encode all items, measure the codes, write the catalog's folder.
With `--extend`, the tokenizer of another catalog encodes the items that it lacks instead.

Shapes: N items, V vector width, L levels.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sidrec.config import Recipe
from sidrec.config.learners import TokenizerConfig
from sidrec.data.sid_labels import sid_label_warning
from sidrec.errors import TrainingError, print_warning
from sidrec.id_maps import IdMaps, check_grown
from sidrec.io.output_folders import output_folder, replaceable_folder, replaced_folder
from sidrec.io.output_lock import OutputLock, locked
from sidrec.io.places import Place, local_path
from sidrec.machine import unwritable
from sidrec.parallel.process_group import Ranks, largest, of_machine, raise_on_all_ranks, run_on_all_ranks
from sidrec.schema import ITEM_ID, ITEMS, LABEL, LOG, MANIFEST, ContractError, MapDigest, load_manifest
from sidrec.sid.catalog import CARD, CATALOG, JOURNAL, PICTURES, REPORT, TOKENIZER, Catalog, load_catalog, write_catalog
from sidrec.sid.collisions import resolve
from sidrec.sid.item_vectors import ItemVectors, map_item_vectors, read_item_vectors
from sidrec.sid.learners.registry import fit_tokenizer, learner_inputs, load_tokenizer, save_tokenizer, shares_fit
from sidrec.sid.quality import (
    check_collapse,
    code_quality,
    equal_vectors,
    quality_table,
    quality_verdict,
    reconstruction_error,
)
from sidrec.sid.tokenizer import Tokenizer
from sidrec.sid.training.trainer import remove_checkpoint

NAMED = 5  # items without content that are named


class _Fitted(NamedTuple):
    """A tokenizer, and the facts of its fit for report.json."""

    tokenizer: Tokenizer
    facts: dict[str, object]


def fit_catalog(
    recipe: Recipe,
    ranks: Ranks,
    overwrite: bool = False,
    read: Callable[..., ItemVectors] = read_item_vectors,
    *,
    pictures: bool = True,
) -> None:
    """Makes the catalog `recipe.data.catalog` from items.parquet; the first rank writes it in one step.

    A catalog with the same fingerprint is left unchanged. A fit that was killed resumes from its last checkpoint.
    overwrite: replace a catalog with other codes. read: a replacement for `read_item_vectors`. pictures: draw them.
    Raises, on all ranks: ContractError if the items are invalid, the learner fits on one process only, or the target
    may not be replaced or another process is writing it; TrainingError if the training failed. Then no catalog is
    written.
    """
    lock = OutputLock(catalog_folder(recipe))
    try:
        run_on_all_ranks(ranks, lambda: _check(recipe, ranks, overwrite, lock))
        _fit_catalog(recipe, ranks, overwrite, read, pictures)
    finally:
        lock.release()


def _fit_catalog(
    recipe: Recipe, ranks: Ranks, overwrite: bool, read: Callable[..., ItemVectors], pictures: bool
) -> None:
    target = catalog_folder(recipe)
    work = target.with_name(f".{target.name}.fit")
    clock = _Clock()
    items = _read(recipe, ranks, read)
    if ranks.first:
        _print_lacking(items, recipe.tokenizer.vectors)
    reading = clock.spent("read")
    fitted = _learn(items, recipe, work, ranks)
    if ranks.first:
        fitted.facts.update(reading)
        _encode_and_write(items, fitted, recipe, overwrite, pictures)
        remove_checkpoint(work)


def catalog_folder(recipe: Recipe) -> Path:
    """The folder that is written. Raises ConfigError for a URI."""
    return local_path(recipe.data.catalog, "data.catalog of sidrec fit")


PATIENCE = 10.0  # seconds in which ranks end whose torchrun was killed


def _check(recipe: Recipe, ranks: Ranks, overwrite: bool, lock: OutputLock) -> None:
    """Takes the lock. Raises ContractError, before any work, if the catalog could not be written.

    Only a catalog may be replaced.
    """
    learner = recipe.tokenizer.learner
    if ranks.world > 1 and not shares_fit(learner):
        expected = "one process, as only learners that train by gradients share their work"
        raise ContractError(f"tokenizer.learner {learner.kind}", expected, ranks.world)
    if ranks.first:
        lock.take(PATIENCE if ranks.world > 1 else 0.0)
        _check_target(catalog_folder(recipe), [recipe.data.path / ITEMS], overwrite)


def _check_target(target: Path, inputs: Sequence[Place], overwrite: bool) -> None:
    if target.exists() and not (target / CARD).is_file():
        raise ContractError(target, "nothing there yet, or a catalog", f"something without {CARD}")
    folder = output_folder(target, inputs)
    if overwrite or not folder.exists():
        replaceable_folder(target, CATALOG)
    obstacle = unwritable(target.parent)
    if obstacle:
        raise ContractError("data.catalog", "a folder that can be written", obstacle)


def _read(recipe: Recipe, ranks: Ranks, read: Callable[..., ItemVectors]) -> ItemVectors:
    """The first rank of each machine reads the items into files; the machine's other ranks map them.

    The files are unlinked as soon as all ranks have mapped them, so that none is left if a process is killed.
    On NFS, the folder cannot be removed while they are mapped; that error is ignored.
    The last check matters because ranks with different numbers of items would take different numbers of steps and hang.
    """
    config, path = recipe.tokenizer, recipe.data.path / ITEMS
    inputs = learner_inputs(config.learner)
    with tempfile.TemporaryDirectory(prefix="sidrec-fit-", ignore_cleanup_errors=True) as own:
        scratch = of_machine(ranks, Path(own))
        reads = scratch == Path(own)
        found = run_on_all_ranks(
            ranks, lambda: read(path, config.vectors, config.normalize, scratch, inputs) if reads else None
        )
        items = run_on_all_ranks(ranks, lambda: found or map_item_vectors(path, config.vectors, scratch, inputs))
    most = largest(ranks, len(items.item_ids_N))

    def check() -> None:
        if len(items.item_ids_N) != most:
            raise ContractError(path, f"{most} items, as another rank has", f"{len(items.item_ids_N)} items")

    run_on_all_ranks(ranks, check)
    return items


def _print_lacking(items: ItemVectors, columns: tuple[str, ...]) -> None:
    """Prints how many items have no content, and so no semantic ID, and names the first of them."""
    if count := len(items.left_out_M):
        first = ", ".join(map(str, items.left_out_M[:NAMED])) + (", ..." if count > NAMED else "")
        of = f"{count:,} of {count + len(items.item_ids_N):,} items have"
        print(f"{of} no content in {'+'.join(columns)} and get no semantic ID: items {first}", flush=True)
    if items.partly:
        print(f"{items.partly:,} items have content in some of {'+'.join(columns)} alone; the rest is zero", flush=True)


def _learn(items: ItemVectors, recipe: Recipe, work: Path, ranks: Ranks) -> _Fitted:
    """Fits the tokenizer. work: for its checkpoints; kept if the process is killed, removed if the fit failed."""
    resumed = work.exists()
    if ranks.first and resumed:
        print(f"{work}: left by a fit that did not end; going on from there if it was the same", flush=True)
    clock = _Clock()
    try:
        tokenizer = fit_tokenizer(items.vectors_NV, recipe.tokenizer, items.side, work)
    except (ContractError, TrainingError) as error:  # all ranks raise the same, or none does
        if ranks.first:
            remove_checkpoint(work)
        raise_on_all_ranks(ranks, error)
        raise
    facts = {**clock.spent("fit"), "resumed": resumed, "processes": ranks.world}
    return _Fitted(tokenizer, {**facts, "threads_per_process": ranks.threads, "device": ranks.device.type})


def _encode_and_write(items: ItemVectors, fitted: _Fitted, recipe: Recipe, overwrite: bool, pictures: bool) -> None:
    """Encodes all items, resolves collisions if the recipe asks for it, measures the codes, writes and prints."""
    tokenizer, target = fitted.tokenizer, catalog_folder(recipe)
    clock = _Clock()
    encoded = tokenizer.encode(items.vectors_NV)
    facts = {**fitted.facts, **clock.spent("encode")}
    codes_NL, collisions = encoded.codes_NL, {}
    if recipe.tokenizer.resolve_collisions:
        clock = _Clock()
        codes_NL, moved, unresolved = resolve(items.vectors_NV, codes_NL, tokenizer)
        collisions = {"moved_items": moved, "unresolved_items": unresolved}
        facts |= clock.spent("resolve")
    item_map = _item_map(recipe.data.path)
    catalog = Catalog(items.item_ids_N, codes_NL, tokenizer.codebook_sizes, encoded.weights_NL, item_map=item_map)
    error = reconstruction_error(items.vectors_NV, codes_NL, tokenizer, encoded.weights_NL)
    codes, equal = code_quality(codes_NL, tokenizer.codebook_sizes), equal_vectors(items.vectors_NV)
    check_collapse(codes, equal)
    quality: dict[str, object] = asdict(codes) | (asdict(error) if error else {}) | collisions
    if _may_write(catalog, target, overwrite):
        lacking = {"items_without_content": len(items.left_out_M), "items_with_equal_vectors": equal.items}
        report = {"tokenizer": asdict(recipe.tokenizer), "quality": quality, **lacking, **facts}
        _write_folder(target, catalog, tokenizer, recipe.tokenizer, recipe.name, report, pictures=pictures)
        print(f"catalog {target}: {len(catalog)} items, fingerprint {catalog.fingerprint[:12]}, fitted in", end=" ")
        print(f"{facts['fit_seconds']:.1f} s, encoded in {facts['encode_seconds']:.1f} s")
    else:
        print(f"catalog {target}: already holds exactly these codes, fingerprint {catalog.fingerprint[:12]}")
    if tokenizer.journal:
        print(f"last epoch: {json.dumps(tokenizer.journal[-1])}")
    print(quality_table(quality))
    print(quality_verdict(codes, tokenizer.codebook_sizes, equal))
    _warn_of_labels(recipe, catalog)
    if pictures:
        print(f"pictures: {target / PICTURES}")


def _warn_of_labels(recipe: Recipe, catalog: Catalog) -> None:
    """Warns if having a SID gives labels away. Vectors alone, without a log, have no labels."""
    log, data = recipe.data.path / LOG, recipe.data
    if (log / MANIFEST).is_file():
        manifest = load_manifest(log)
        if set(data.train_on) <= set(manifest.splits) and data.label in (LABEL, *manifest.labels):
            said = sid_label_warning(log, manifest, data.train_on, data.label, catalog.item_ids_N)
            if said:
                print_warning(said)


def _item_map(data: Place) -> MapDigest | None:
    """The id map of the data folder's items; None if it has no log or no maps."""
    return load_manifest(data / LOG).id_maps.get(ITEM_ID) if (data / LOG / MANIFEST).is_file() else None


def _may_write(catalog: Catalog, target: Path, overwrite: bool) -> bool:
    """Whether to write: not if the target holds the same codes. Raises ContractError if it holds others."""
    if overwrite or not target.exists():
        return True
    found = load_catalog(target).fingerprint
    if found != catalog.fingerprint:
        expected = f"no catalog yet, or the fingerprint {catalog.fingerprint} of the codes just fitted"
        raise ContractError(target, expected, f"{found}; --overwrite replaces it")
    return False


def _write_folder(
    target: Path,
    catalog: Catalog,
    tokenizer: Tokenizer,
    config: TokenizerConfig,
    name: str,
    report: Mapping[str, object],
    *,
    pictures: bool,
) -> None:
    """Writes the catalog's folder (`sidrec.sid.catalog` lists its files) in one step; replaces a catalog.

    name: of the recipe, for the pictures' titles. report: the content of report.json. pictures: draw them.
    """
    sizes = " x ".join(map(str, catalog.codebook_sizes))
    what = f"{config.learner.kind} {sizes} on {'+'.join(config.vectors)}, seed {config.seed}"
    conditions = f"{name}: {len(catalog):,} items, {what}"
    with replaced_folder(target, CATALOG) as partial:
        write_catalog(catalog, partial)
        save_tokenizer(tokenizer, config, partial / TOKENIZER)
        (partial / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if tokenizer.journal:
            (partial / JOURNAL).write_text(
                "".join(f"{json.dumps(entry)}\n" for entry in tokenizer.journal), encoding="utf-8"
            )
        if pictures:
            _draw(catalog, tokenizer, conditions, partial / PICTURES)


def _draw(catalog: Catalog, tokenizer: Tokenizer, conditions: str, folder: Path) -> None:
    from sidrec.sid.pictures import draw_pictures, draw_training  # matplotlib takes long to import

    draw_pictures(catalog, conditions, folder)
    if tokenizer.journal:
        draw_training(tokenizer.journal, conditions, folder)


class _Clock:
    """Wall and CPU seconds since it was made. On a machine with other work, compare CPU seconds."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def spent(self, part: str) -> dict[str, object]:
        """Wall and CPU seconds so far, keyed as in report.json."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {f"{part}_seconds": wall, f"{part}_cpu_seconds": cpu}


# Extension: a frozen tokenizer encodes the items that a catalog lacks.


SAME_CODES = 0.9
"""Share of the catalog's items that must still get their codes, or a warning is printed."""
LEAST_SAME = 0.5
"""Below this share, the vectors are taken to be of another kind than those of the fit, and are refused."""


def extend_catalog(
    recipe: Recipe, source: Path, ranks: Ranks, overwrite: bool = False, *, pictures: bool = True
) -> None:
    """Makes the catalog `recipe.data.catalog` from the catalog `source` and the items of items.parquet that it lacks.

    SIDs and table rows of the items of `source` stay, also of those that items.parquet no longer lists. The first rank
    does the work. Raises ContractError on all ranks, also if the tokenizer gives the items of `source` other codes.
    """

    def extend() -> None:
        if ranks.first:
            with locked(catalog_folder(recipe)):
                _extend(recipe, source, overwrite, pictures)

    run_on_all_ranks(ranks, extend)


def _extend(recipe: Recipe, source: Path, overwrite: bool, pictures: bool) -> None:
    target, path = catalog_folder(recipe), recipe.data.path / ITEMS
    _check_target(target, [path, source], overwrite)
    catalog = load_catalog(source)
    tokenizer, config = load_tokenizer(source / TOKENIZER)
    item_map = _item_map(recipe.data.path)
    if catalog.item_map is not None and item_map is not None:
        check_grown(IdMaps({ITEM_ID: catalog.item_map}), source, recipe.data.path)
    if config != recipe.tokenizer:
        print_warning(f"the recipe's section tokenizer is not that of {source}, whose frozen tokenizer is used")
    with tempfile.TemporaryDirectory(prefix="sidrec-fit-") as scratch:
        inputs = replace(learner_inputs(config.learner), pairs=False, behavior=False)  # the fit alone needs these
        items = read_item_vectors(path, config.vectors, config.normalize, Path(scratch), inputs)
        _print_lacking(items, config.vectors)
        new_N = ~np.isin(items.item_ids_N, catalog.item_ids_N)
        _check_codes(catalog, items, ~new_N, tokenizer, config, path)
        larger = catalog.extend(items.item_ids_N[new_N], items.vectors_NV[new_N], tokenizer, config.resolve_collisions)
        larger = replace(larger, item_map=item_map or catalog.item_map)
    codes = code_quality(larger.codes_NL, larger.codebook_sizes)
    if _may_write(larger, target, overwrite):
        extended = {"catalog": str(source), "fingerprint": catalog.fingerprint, "new_items": int(new_N.sum())}
        report = {"tokenizer": asdict(config), "quality": asdict(codes), "extended": extended}
        _write_folder(target, larger, tokenizer, config, recipe.name, report, pictures=pictures)
    print(f"catalog {target}: {len(larger)} items, {new_N.sum()} of them new, fingerprint {larger.fingerprint[:12]},")
    print(f"extended from {source}, fingerprint {catalog.fingerprint[:12]}")
    print(quality_table(asdict(codes)))


def _check_codes(
    catalog: Catalog, items: ItemVectors, old_N: np.ndarray, tokenizer: Tokenizer, config: TokenizerConfig, path: Place
) -> None:
    """Compares the catalog's codes with those that its items get now. Resolved collisions change the last code only."""
    levels = catalog.levels - config.resolve_collisions
    if not old_N.any() or not levels:
        return
    now_ML = tokenizer.encode(items.vectors_NV[old_N]).codes_NL
    then_ML = catalog.codes_NL[np.searchsorted(catalog.item_ids_N, items.item_ids_N[old_N])]
    same = float((now_ML[:, :levels] == then_ML[:, :levels]).all(axis=1).mean())
    found = f"{same:.0%} of {old_N.sum():,} items of the catalog"
    if same < LEAST_SAME:
        where = f"{path}, column {', '.join(config.vectors)}"
        raise ContractError(where, "vectors as the tokenizer was fitted on", f"vectors that give {found} their codes")
    if same < SAME_CODES:
        print_warning(f"{path}: only {found} still get their codes; their vectors have changed, their codes stay")
