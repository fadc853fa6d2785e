"""`sidrec fit RECIPE`: from item vectors to a catalog of semantic ids."""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sidrec.config import Recipe, load
from sidrec.machine import unwritable
from sidrec.schema import ITEMS, ContractError
from sidrec.sid.artifact import fit_tokenizer, save_tokenizer
from sidrec.sid.atomic_folder import atomic_folder
from sidrec.sid.catalog import CARD, PICTURES, REPORT, TOKENIZER, Catalog, load_catalog, write_catalog
from sidrec.sid.collisions import resolve
from sidrec.sid.item_vectors import ItemVectors, read_item_vectors
from sidrec.sid.needs import needs_of
from sidrec.sid.pictures import draw_pictures
from sidrec.sid.quality import code_quality, quality_table, reconstruction_error
from sidrec.sid.tokenizer import Tokenizer

OVERWRITE = "--overwrite"
ABOUT = (
    "Learns semantic ids from the vector columns of items.parquet, writes the catalog and prints its quality.\n"
    f"{OVERWRITE} replaces a catalog that holds other codes."
)


def main(argv: Sequence[str]) -> None:
    """Fits the recipe's tokenizer, writes the catalog and prints its quality.

    argv: the recipe, flags for its scalars, and --overwrite to replace a catalog that holds other codes.
    Raises ConfigError or ContractError when the recipe or the items are wrong; no catalog is left behind then.
    """
    fit(load([word for word in argv if word != OVERWRITE], "sidrec fit", ABOUT), OVERWRITE in argv)


def fit(recipe: Recipe, overwrite: bool = False) -> Catalog:
    """Makes `recipe.data.catalog` from `recipe.data.path`/items.parquet, in one step.

    A catalog with the same fingerprint is left as it is. Raises ContractError when the items are wrong, or another
    catalog is there and may not be overwritten.
    """
    config, target = recipe.tokenizer, recipe.data.catalog
    _check_target(target)
    with tempfile.TemporaryDirectory(prefix="sidrec-fit-") as scratch:
        vectors_file = Path(scratch) / "vectors.npy"
        needs = needs_of(config.learner)
        items = read_item_vectors(recipe.data.path / ITEMS, config.vectors, config.normalize, vectors_file, needs)
        start = time.perf_counter()
        tokenizer = fit_tokenizer(items.vectors_NV, config, items.side)
        fitted = time.perf_counter()
        encoded = tokenizer.encode(items.vectors_NV)
        seconds = {"fit_seconds": fitted - start, "encode_seconds": time.perf_counter() - fitted}
        codes_NL, collisions = encoded.codes_NL, {}
        if config.resolve_collisions:
            codes_NL, moved, unresolved = resolve(items.vectors_NV, codes_NL, tokenizer)
            collisions = {"moved_items": moved, "unresolved_items": unresolved}
        catalog = Catalog(items.item_ids_N, codes_NL, tokenizer.codebook_sizes, encoded.weights_NL)
        quality = _quality(items, codes_NL, tokenizer) | collisions
    if _may_write(catalog, target, overwrite):
        _write(catalog, tokenizer, recipe, {"quality": quality, **seconds})
        print(f"catalog {target}: {len(catalog)} items, fingerprint {catalog.fingerprint[:12]}, fitted in", end=" ")
        print(f"{seconds['fit_seconds']:.1f} s, encoded in {seconds['encode_seconds']:.1f} s")
    else:
        print(f"catalog {target}: already holds exactly these codes, fingerprint {catalog.fingerprint[:12]}")
    print(quality_table(quality))
    print(f"pictures: {target / PICTURES}")
    return catalog


def _check_target(target: Path) -> None:
    """What is no catalog is never replaced, whatever the flags; and a fit for nothing is not begun."""
    if target.exists() and not (target / CARD).is_file():
        raise ContractError(target, "nothing there yet, or a catalog", f"something without {CARD}")
    obstacle = unwritable(target.parent)
    if obstacle:
        raise ContractError("data.catalog", "a folder that can be written", obstacle)


def _may_write(catalog: Catalog, target: Path, overwrite: bool) -> bool:
    """Whether to write; False when the target holds the same codes. Raises ContractError when it holds others."""
    if overwrite or not target.exists():
        return True
    found = load_catalog(target).fingerprint
    if found != catalog.fingerprint:
        expected = f"no catalog yet, or the fingerprint {catalog.fingerprint} of the codes just fitted"
        raise ContractError(target, expected, f"{found}; {OVERWRITE} replaces it")
    return False


def _quality(items: ItemVectors, codes_NL: np.ndarray, tokenizer: Tokenizer) -> dict[str, object]:
    report: dict[str, object] = asdict(code_quality(codes_NL, tokenizer.codebook_sizes))
    error = reconstruction_error(items.vectors_NV, codes_NL, tokenizer)
    return report | (asdict(error) if error else {})


def _write(catalog: Catalog, tokenizer: Tokenizer, recipe: Recipe, report: dict[str, object]) -> None:
    config = recipe.tokenizer
    sizes = " x ".join(map(str, catalog.codebook_sizes))
    what = f"{config.learner.kind} {sizes} on {'+'.join(config.vectors)}, seed {config.seed}"
    with atomic_folder(recipe.data.catalog) as partial:
        write_catalog(catalog, partial)
        save_tokenizer(tokenizer, config, partial / TOKENIZER)
        (partial / REPORT).write_text(json.dumps({"tokenizer": asdict(config), **report}, indent=1) + "\n")
        draw_pictures(catalog, f"{recipe.name}: {len(catalog):,} items, {what}", partial / PICTURES)


if __name__ == "__main__":
    from sidrec import cli

    sys.exit(cli.main(["fit", *sys.argv[1:]]))
