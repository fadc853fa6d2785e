"""`sidrec fit RECIPE`: from item vectors to a catalog of semantic ids, on one process or the ranks of torchrun.

Shapes: N items, V vector width, L levels.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from sidrec.config import Recipe, load
from sidrec.config.learners import GradientLearnerConfig
from sidrec.errors import TrainingError
from sidrec.io.output_folders import output_folder, replaceable_folder
from sidrec.machine import unwritable
from sidrec.parallel.process_group import Ranks, joined_ranks, largest, of_machine, raise_on_all_ranks, run_on_all_ranks
from sidrec.schema import ITEMS, ContractError
from sidrec.sid.artifact import fit_tokenizer, write_catalog_folder
from sidrec.sid.catalog import CARD, CATALOG, PICTURES, Catalog, load_catalog
from sidrec.sid.collisions import resolve
from sidrec.sid.item_vectors import ItemVectors, map_item_vectors, read_item_vectors
from sidrec.sid.quality import code_quality, quality_table, reconstruction_error
from sidrec.sid.tokenizer import Tokenizer
from sidrec.sid.training.checkpoint import remove_checkpoint
from sidrec.sid.training.objectives import needs_of

OVERWRITE = "--overwrite"


ABOUT = (
    "Learns semantic ids from the vector columns of items.parquet, writes the catalog and prints its quality.\n"
    f"{OVERWRITE} replaces a catalog that holds other codes. A fit that was killed goes on where it was."
)


class _Fitted(NamedTuple):
    """A tokenizer, and the facts about its fit that the report keeps."""

    tokenizer: Tokenizer
    facts: dict[str, object]


class _Clock:
    """Seconds since it was made, of wall and of CPU time: on a machine with other work only the latter says much."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def spent(self, part: str) -> dict[str, object]:
        """As the report names them."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {f"{part}_seconds": wall, f"{part}_cpu_seconds": cpu}


def main(argv: Sequence[str]) -> None:
    """Fits the recipe's tokenizer, writes the catalog and prints its quality.

    argv: the recipe, flags for its scalars, and --overwrite to replace a catalog that holds other codes.
    Raises ConfigError, ContractError or LearningError, on all ranks together; no catalog is left behind then.
    """
    words = [word for word in argv if word != OVERWRITE]
    with joined_ranks() as ranks:
        fit(run_on_all_ranks(ranks, lambda: load(words, "sidrec fit", ABOUT)), ranks, OVERWRITE in argv)


def fit(recipe: Recipe, ranks: Ranks, overwrite: bool = False) -> None:
    """Makes `recipe.data.catalog` from `recipe.data.path`/items.parquet, in one step, by the first rank.

    A catalog with the same fingerprint is left as it is. Raises ContractError when the items are wrong, several ranks
    are to fit what only one can, or another catalog is there and may not be overwritten; LearningError when the
    training failed.
    """
    run_on_all_ranks(ranks, lambda: _check(recipe, ranks, overwrite))
    work = recipe.data.catalog.with_name(f".{recipe.data.catalog.name}.fit")
    clock = _Clock()
    items = _read(recipe, ranks)
    if items.left_out and ranks.first:
        print(f"{items.left_out} items have no behaviour and get no semantic id", flush=True)
    reading = clock.spent("read")
    fitted = _learn(items, recipe, work, ranks)
    if ranks.first:
        fitted.facts.update(reading)
        _finish(items, fitted, recipe, overwrite)
        remove_checkpoint(work)


def _check(recipe: Recipe, ranks: Ranks, overwrite: bool) -> None:
    """What is no catalog is never replaced, whatever the flags; and a fit for nothing is not begun."""
    target, learner = recipe.data.catalog, recipe.tokenizer.learner
    if ranks.world > 1 and not isinstance(learner, GradientLearnerConfig):
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


def _read(recipe: Recipe, ranks: Ranks) -> ItemVectors:
    """The first rank of a machine reads all items into files, which the others map.

    The files are removed as soon as all ranks have them: what is mapped stays until the last process ends, however it
    ends. With another number of items a rank would take another number of steps, and all would hang.
    """
    config, path = recipe.tokenizer, recipe.data.path / ITEMS
    needs = needs_of(config.learner)
    with tempfile.TemporaryDirectory(prefix="sidrec-fit-", ignore_cleanup_errors=True) as own:  # NFS
        scratch = of_machine(ranks, Path(own))
        reads = scratch == Path(own)

        def read() -> ItemVectors | None:
            return read_item_vectors(path, config.vectors, config.normalize, scratch, needs) if reads else None

        found = run_on_all_ranks(ranks, read)
        items = run_on_all_ranks(ranks, lambda: found or map_item_vectors(path, config.vectors, scratch, needs))
    most = largest(ranks, len(items.item_ids_N))

    def check() -> None:
        if len(items.item_ids_N) != most:
            raise ContractError(path, f"{most} items, as another rank has", f"{len(items.item_ids_N)} items")

    run_on_all_ranks(ranks, check)
    return items


def _learn(items: ItemVectors, recipe: Recipe, work: Path, ranks: Ranks) -> _Fitted:
    """`work` stays when the process is killed, and goes when starting again could only fail again."""
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


def _finish(items: ItemVectors, fitted: _Fitted, recipe: Recipe, overwrite: bool) -> None:
    """Codes, their quality, and the catalog's folder."""
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
    quality: dict[str, object] = asdict(code_quality(codes_NL, tokenizer.codebook_sizes))
    quality |= (asdict(error) if error else {}) | collisions
    if _may_write(catalog, target, overwrite):
        write_catalog_folder(target, catalog, tokenizer, recipe.tokenizer, recipe.name, {"quality": quality, **facts})
        print(f"catalog {target}: {len(catalog)} items, fingerprint {catalog.fingerprint[:12]}, fitted in", end=" ")
        print(f"{facts['fit_seconds']:.1f} s, encoded in {facts['encode_seconds']:.1f} s")
    else:
        print(f"catalog {target}: already holds exactly these codes, fingerprint {catalog.fingerprint[:12]}")
    if tokenizer.journal:
        print(f"last epoch: {json.dumps(tokenizer.journal[-1])}")
    print(quality_table(quality))
    print(f"pictures: {target / PICTURES}")


def _may_write(catalog: Catalog, target: Path, overwrite: bool) -> bool:
    """Whether to write; False when the target holds the same codes. Raises ContractError when it holds others."""
    if overwrite or not target.exists():
        return True
    found = load_catalog(target).fingerprint
    if found != catalog.fingerprint:
        expected = f"no catalog yet, or the fingerprint {catalog.fingerprint} of the codes just fitted"
        raise ContractError(target, expected, f"{found}; {OVERWRITE} replaces it")
    return False


if __name__ == "__main__":
    from sidrec import cli

    sys.exit(cli.main(["fit", *sys.argv[1:]]))
