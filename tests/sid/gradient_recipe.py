"""A small world for a gradient-trained learner, and its recipe, for tests of `sidrec fit` as a user calls it."""

from pathlib import Path

import numpy as np

from tests.sid.item_files import clustered_vectors, write_items

RECIPE = """
name: small
data: {{path: {folder}/data, catalog: {folder}/catalog}}
tokenizer:
  vectors: {vectors}
  learner:
    kind: {kind}
    codebook_size: 8
    width: 4
    hidden: {hidden}
    training: {{epochs: {epochs}, batch_size: 40, save_every: 1, least_utilisation: {least_utilisation}}}
"""
ITEMS = 120
TEXT = clustered_vectors(ITEMS)
BEHAVIOR = 5 * clustered_vectors(ITEMS, width=4, seed=1)


def write_world(
    folder: Path,
    kind: str = "rqvae",
    vectors: tuple[str, ...] = ("text",),
    epochs: int = 2,
    least_utilisation: float = 0,
) -> Path:
    """Writes FOLDER/data/items.parquet with text and behaviour, and a recipe; returns the recipe."""
    write_items(folder / "data" / "items.parquet", np.arange(1, ITEMS + 1), text=TEXT, behavior=BEHAVIOR)
    recipe = folder / "recipe.yaml"
    hidden = 8 if kind == "adc_sid" else [16]
    sections = {"kind": kind, "vectors": list(vectors), "hidden": hidden, "epochs": epochs}
    recipe.write_text(RECIPE.format(folder=folder, least_utilisation=least_utilisation, **sections))
    return recipe
