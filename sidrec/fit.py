"""`sidrec fit`: item vectors to a catalog of semantic ids, on one process or on the ranks of torchrun.

Check the target, read the items, learn a tokenizer, encode all items, measure the codes, write the catalog's folder.

Shapes: N items, V vector width, L levels.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from sidrec.config import Recipe
from sidrec.config.learners import TokenizerConfig
from sidrec.errors import TrainingError
from sidrec.io.output_folders import output_folder, replaceable_folder, replaced_folder
from sidrec.machine import unwritable
from sidrec.parallel.process_group import Ranks, largest, of_machine, raise_on_all_ranks, run_on_all_ranks
from sidrec.schema import ITEMS, ContractError
from sidrec.sid.catalog import CARD, CATALOG, JOURNAL, PICTURES, REPORT, TOKENIZER, Catalog, load_catalog, write_catalog
from sidrec.sid.collisions import resolve
from sidrec.sid.item_vectors import ItemVectors, map_item_vectors, read_item_vectors
from sidrec.sid.learners.registry import fit_tokenizer, learner_inputs, save_tokenizer, shares_fit
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
    recipe: Recipe, ranks: Ranks, overwrite: bool = False, read: Callable[..., ItemVectors] = read_item_vectors
) -> None:
    """Makes the catalog `recipe.data.catalog` from items.parquet; the first rank writes it in one step.

    A catalog with the same fingerprint is left unchanged. A fit that was killed resumes from its last checkpoint.
    overwrite: replace a catalog with other codes. read: a replacement for `read_item_vectors`.
    Raises, on all ranks: ContractError if the items are invalid, the learner fits on one process only, or the target
    may not be replaced; TrainingError if the training failed. Then no catalog is written.
    """
    run_on_all_ranks(ranks, lambda: _check(recipe, ranks, overwrite))
    work = recipe.data.catalog.with_name(f".{recipe.data.catalog.name}.fit")
    clock = _Clock()
    items = _read(recipe, ranks, read)
    if ranks.first:
        _print_lacking(items, recipe.tokenizer.vectors)
    reading = clock.spent("read")
    fitted = _learn(items, recipe, work, ranks)
    if ranks.first:
        fitted.facts.update(reading)
        _encode_and_write(items, fitted, recipe, overwrite)
        remove_checkpoint(work)


def _check(recipe: Recipe, ranks: Ranks, overwrite: bool) -> None:
    """Raises ContractError, before any work, if the catalog could not be written. Only a catalog may be replaced."""
    target, learner = recipe.data.catalog, recipe.tokenizer.learner
    if ranks.world > 1 and not shares_fit(learner):
        expected = "one process, as only learners that train by gradients share their work"
        raise ContractError(f"tokenizer.learner {learner.kind}", expected, ranks.world)
    if not ranks.first:
        return
    if target.exists() and not (target / CARD).is_file():
        raise ContractError(target, "nothing there yet, or a catalog", f"something without {CARD}")
    folder = output_folder(target, [recipe.data.path / ITEMS])
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


def _encode_and_write(items: ItemVectors, fitted: _Fitted, recipe: Recipe, overwrite: bool) -> None:
    """Encodes all items, resolves collisions if the recipe asks for it, measures the codes, writes and prints."""
    tokenizer, target = fitted.tokenizer, recipe.data.catalog
    clock = _Clock()
    encoded = tokenizer.encode(items.vectors_NV)
    facts = {**fitted.facts, **clock.spent("encode")}
    codes_NL, collisions = encoded.codes_NL, {}
    if recipe.tokenizer.resolve_collisions:
        clock = _Clock()
        codes_NL, moved, unresolved = resolve(items.vectors_NV, codes_NL, tokenizer)
        collisions = {"moved_items": moved, "unresolved_items": unresolved}
        facts |= clock.spent("resolve")
    catalog = Catalog(items.item_ids_N, codes_NL, tokenizer.codebook_sizes, encoded.weights_NL)
    error = reconstruction_error(items.vectors_NV, codes_NL, tokenizer, encoded.weights_NL)
    codes, equal = code_quality(codes_NL, tokenizer.codebook_sizes), equal_vectors(items.vectors_NV)
    check_collapse(codes, equal)
    quality: dict[str, object] = asdict(codes) | (asdict(error) if error else {}) | collisions
    if _may_write(catalog, target, overwrite):
        lacking = {"items_without_content": len(items.left_out_M), "items_with_equal_vectors": equal.items}
        report = {"tokenizer": asdict(recipe.tokenizer), "quality": quality, **lacking, **facts}
        _write_folder(target, catalog, tokenizer, recipe.tokenizer, recipe.name, report)
        print(f"catalog {target}: {len(catalog)} items, fingerprint {catalog.fingerprint[:12]}, fitted in", end=" ")
        print(f"{facts['fit_seconds']:.1f} s, encoded in {facts['encode_seconds']:.1f} s")
    else:
        print(f"catalog {target}: already holds exactly these codes, fingerprint {catalog.fingerprint[:12]}")
    if tokenizer.journal:
        print(f"last epoch: {json.dumps(tokenizer.journal[-1])}")
    print(quality_table(quality))
    print(quality_verdict(codes, tokenizer.codebook_sizes, equal))
    print(f"pictures: {target / PICTURES}")


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
) -> None:
    """Writes the catalog's folder (`sidrec.sid.catalog` lists its files) in one step; replaces a catalog.

    name: of the recipe, for the pictures' titles. report: the content of report.json.
    """
    from sidrec.sid.pictures import draw_pictures, draw_training  # matplotlib takes long to import

    sizes = " x ".join(map(str, catalog.codebook_sizes))
    what = f"{config.learner.kind} {sizes} on {'+'.join(config.vectors)}, seed {config.seed}"
    conditions = f"{name}: {len(catalog):,} items, {what}"
    with replaced_folder(target, CATALOG) as partial:
        write_catalog(catalog, partial)
        save_tokenizer(tokenizer, config, partial / TOKENIZER)
        (partial / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        draw_pictures(catalog, conditions, partial / PICTURES)
        if tokenizer.journal:
            (partial / JOURNAL).write_text(
                "".join(f"{json.dumps(entry)}\n" for entry in tokenizer.journal), encoding="utf-8"
            )
            draw_training(tokenizer.journal, conditions, partial / PICTURES)


class _Clock:
    """Wall and CPU seconds since it was made. On a machine with other work, compare CPU seconds."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def spent(self, part: str) -> dict[str, object]:
        """Wall and CPU seconds so far, keyed as in report.json."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {f"{part}_seconds": wall, f"{part}_cpu_seconds": cpu}
