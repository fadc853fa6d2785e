"""Everything that `sidrec fit` keeps of a fit, in the catalog's folder: see `sidrec.sid.catalog`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from sidrec.config.tokenizer import TokenizerConfig
from sidrec.sid.artifact import save_tokenizer
from sidrec.sid.atomic_folder import atomic_folder
from sidrec.sid.catalog import CATALOG, JOURNAL, PICTURES, REPORT, TOKENIZER, Catalog, write_catalog
from sidrec.sid.pictures import draw_pictures, draw_training
from sidrec.sid.tokenizer import Tokenizer


def write_catalog_folder(
    target: Path,
    catalog: Catalog,
    tokenizer: Tokenizer,
    config: TokenizerConfig,
    name: str,
    report: Mapping[str, object],
) -> None:
    """Writes the folder in one step; replaces a catalog that exists. Raises ContractError as `atomic_folder` does.

    name: of the recipe, for the pictures' titles. report: what report.json says beside the tokenizer's config.
    """
    sizes = " x ".join(map(str, catalog.codebook_sizes))
    what = f"{config.learner.kind} {sizes} on {'+'.join(config.vectors)}, seed {config.seed}"
    conditions = f"{name}: {len(catalog):,} items, {what}"
    with atomic_folder(target, CATALOG) as partial:
        write_catalog(catalog, partial)
        save_tokenizer(tokenizer, config, partial / TOKENIZER)
        (partial / REPORT).write_text(json.dumps({"tokenizer": asdict(config), **report}, indent=1) + "\n")
        draw_pictures(catalog, conditions, partial / PICTURES)
        if tokenizer.journal:
            (partial / JOURNAL).write_text("".join(f"{json.dumps(entry)}\n" for entry in tokenizer.journal))
            draw_training(tokenizer.journal, conditions, partial / PICTURES)
