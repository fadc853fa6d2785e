"""The study of a recipe alone: the variants that answer whether SIDs help on its log, and how best to use them.

HIDs alone and SIDs alone are the references. Between them stand the simple uses of SIDs (concatenation, mean, prefix
n-grams), the content vector without SIDs, SID-Coord as published and as recommended, and the recipe's own item section
if it is none of these.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sidrec.config import Recipe, load_mapping
from sidrec.config.item import Item, SidCoordItem
from sidrec.config.learners import TokenizerConfig
from sidrec.config.load import parse
from sidrec.config.section import MOST_LEVELS
from sidrec.sid.catalog import load_catalog
from sidrec.study.definition import Column, Overrides, Study, load_study
from sidrec.study.search import BEST_FILE
from sidrec.study.tuning import Choices, Range, Tuning

OWN = "own"
"""The variant with the recipe's own item section."""
REFERENCES = ("hid_only", "sid_only")
COLUMNS: tuple[Column, ...] = ("AUC", "GAUC", "NE", "tail AUC", "warm-tail AUC", "cold AUC")
TUNING = Tuning(
    space={
        "optimizer.tables.lr": Range(low=0.01, high=0.5, log=True),
        "optimizer.dense.lr": Choices(choices=(0.0005, 0.001, 0.002, 0.004)),
        "model.hid_init": Choices(choices=(None, 0.0)),
    }
)
"""The search of `--tune`: the same for every variant."""


def study_of(path: Path, results: Path | None = None, tune: bool = False) -> Study:
    """The study of a YAML file, or the standard study of a recipe.

    results: instead of the study's. tune: the standard study searches; it also does where an earlier search of it left
    its best values. Raises ConfigError for mistakes; ContractError for the catalog of a recipe.
    """
    raw = load_mapping(path, "YAML file")
    standard = not {"datasets", "variants"} & set(raw)
    study = _standard_study(path, raw) if standard else load_study(path)
    if results is not None:
        study = replace(study, results=results)
    if standard and (tune or (study.results / study.name / BEST_FILE).exists()):
        study = replace(study, tuning=TUNING)
    return study


def _standard_study(path: Path, raw: Overrides) -> Study:
    recipe = parse(raw, str(path))
    return Study(
        name=_name(path.stem),
        datasets={_name(recipe.data.path.resolve().name): path},
        variants=_variants(raw, recipe),
        references=REFERENCES,
        columns=COLUMNS,
        split=recipe.evaluate.splits[-1] if recipe.evaluate.splits else "test",
    )


def _name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in text)


def _variants(raw: Overrides, recipe: Recipe) -> dict[str, Overrides]:
    items = standard_items(recipe, recipe.tokenizer if "tokenizer" in raw else None)
    own = {OWN: raw["model"]["item"]} if isinstance(raw.get("model"), dict) and "item" in raw["model"] else {}
    others = [_without_preset(_checked(raw, item).model.item) for item in items.values()]
    if own and _without_preset(recipe.model.item) not in others:
        items |= own
    return {name: {"model": {"item": item}} for name, item in items.items()}


def _without_preset(item: Item) -> Item:
    """The item without the name of the preset that filled it."""
    return replace(item, preset=None) if isinstance(item, SidCoordItem) else item


def _checked(raw: Overrides, item: dict[str, Any]) -> Recipe:
    return parse({**raw, "model": {**raw.get("model", {}), "item": item}}, "the standard study")


def standard_items(recipe: Recipe, tokenizer: TokenizerConfig | None) -> dict[str, dict[str, Any]]:
    """Name of a variant -> its item section, for a recipe's number of levels.

    tokenizer: of the recipe, if it has one; else the levels are those of its catalog, and there is no content variant,
    whose vectors a tokenizer names. Prefix n-grams need levels in order. Raises ContractError for a catalog that cannot
    be read.
    """
    levels = load_catalog(recipe.data.catalog).levels if tokenizer is None else tokenizer.levels
    ordered = tokenizer is None or not tokenizer.unordered_levels
    single = [f"s{level}" for level in range(1, levels + 1)]
    adjacent = single + ([f"s{level}{level + 1}" for level in range(1, levels)] if ordered else [])
    average = {"gate": {"kind": "mean"}, "fusion": {"kind": "mean"}, "alignment": {"kind": "none"}}
    items: dict[str, dict[str, Any]] = {
        "hid_only": {"kind": "hid"},
        "sid_only": {"kind": "sid", "granularities": adjacent},
        "concatenation": {"kind": "hid_and_sid", "granularities": single, "fusion": {"kind": "concat_project"}},
        "mean": {"kind": "sid_coord", "granularities": adjacent, "history": ["hid", "sid"], **average},
        "published": {"kind": "sid_coord", "preset": "published", "granularities": adjacent},
        "recommended": {"kind": "sid_coord", "preset": "recommended", "granularities": adjacent},
    }
    if ordered:
        prefixes = ["s" + "123456789"[:level] for level in range(1, min(levels, MOST_LEVELS) + 1)]
        items["prefix_ngram"] = {"kind": "hid_and_sid", "granularities": prefixes, "fusion": {"kind": "sum"}}
    if tokenizer is not None:
        items["content"] = {"kind": "content", "vectors": list(tokenizer.vectors)}
    return items
