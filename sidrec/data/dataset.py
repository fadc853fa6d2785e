"""A recipe's data: manifest, catalog and item tables, read and checked before anything is allocated.

Shapes: N rows of a row group, S statistics columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sidrec.config import Recipe
from sidrec.config.section import granularity_levels
from sidrec.data.item_tables import HID, ContentVectors, ItemTable, ItemTables, impressions_by_id, item_tables
from sidrec.data.loader import columns_of
from sidrec.data.rows import RowGroup, split_index
from sidrec.errors import print_warning
from sidrec.id_maps import IdMaps, check_grown
from sidrec.io.parquet_places import open_parquet
from sidrec.io.places import Place
from sidrec.schema import ITEM_ID, ITEMS, LOG, MANIFEST, ContractError, Manifest, load_manifest
from sidrec.sid.catalog import Catalog, fitted_config, load_catalog
from sidrec.sid.granularity import Subwords, fit_subwords


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model that the data determines.

    item_tables: table name -> rows and features. context_rows: id column -> rows. dense: number X of int_* columns.
    context_lists: id columns of lists -> mean ids in a row.
    stats_mean, stats_std: moments of log1p(stat_*) over the train split, one per statistic (S).
    content: width V of an item's content vector, 0 if the model uses none.
    rows_per_lane: rows of a step that come from one lane, padding included; the same at any number of ranks.
    impressions: granularity -> train impressions of each row of its table, if a fusion counts them.
    """

    item_tables: Mapping[str, ItemTable]
    context_rows: Mapping[str, int]
    dense: int
    stats_mean: tuple[float, ...]
    stats_std: tuple[float, ...]
    content: int = 0
    rows_per_lane: int = 0
    context_lists: Mapping[str, float] = field(default_factory=dict)
    impressions: Mapping[str, NDArray[np.int64]] = field(default_factory=dict, compare=False)

    @property
    def sid_features(self) -> tuple[str, ...]:
        """Names of the item features that are cut from SIDs."""
        return tuple(name for table, found in self.item_tables.items() if table != HID for name in found.features)


@dataclass(frozen=True)
class Dataset:
    """A recipe's data, and the sizes that it gives the model.

    fingerprint: of the catalog, and of the subwords if SIDs are cut into these; None if the item kind has no SIDs.
    sid_rows: fingerprint of this catalog, or of one that it was extended from -> SID table -> its rows with that one.
    """

    manifest: Manifest
    tables: ItemTables
    sizes: Sizes
    fingerprint: str | None
    sid_rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def as_trained(self, rows: Mapping[str, int]) -> "Dataset":
        """This data for a model that was trained on fewer ids, which reads later ones as unknown.

        rows: table -> rows of the trained model, of all its tables.
        """
        context = {column: rows[column] for column in self.sizes.context_rows}
        tables = self.tables.as_trained(rows)
        return replace(self, tables=tables, sizes=replace(self.sizes, item_tables=tables.tables, context_rows=context))


def read_contracts(recipe: Recipe) -> tuple[Manifest, Catalog | None]:
    """The manifest of the log, and the catalog if the item kind has SIDs. Raises ContractError."""
    manifest = load_manifest(recipe.data.path / LOG)
    return manifest, load_catalog(recipe.data.catalog) if recipe.model.item.sids else None


def check_item_ids(recipe: Recipe, manifest: Manifest, catalog: Catalog | None) -> None:
    """Checks that the log numbers items as the catalog does, where both have an id map.

    Warns if the log has fewer items than the catalog's data had: then nothing tells. Raises ContractError as
    `check_grown` does.
    """
    known, found = catalog.item_map if catalog else None, manifest.id_maps.get(ITEM_ID)
    if known is None or found is None:
        return
    if found.ids < known.ids:
        got = f"{recipe.data.path} has {found.ids:,} items, fewer than the {known.ids:,} of {recipe.data.catalog}"
        print_warning(f"{got}: whether both number them alike is not checked")
    else:
        check_grown(IdMaps({ITEM_ID: known}), recipe.data.catalog, recipe.data.path)


def independent_levels(recipe: Recipe) -> str | None:
    """A warning if the model joins levels of the catalog that do not refine each other, None otherwise."""
    item, config = recipe.model.item.sids, fitted_config(recipe.data.catalog)
    if item is None or config is None or not config.unordered_levels:
        return None
    joined = ", ".join(name for name in item.granularities if len(granularity_levels(name)) > 1)
    what = f"granularities {joined}" if item.subwords is None else "tokens of kind spm"
    if item.subwords is None and not joined:
        return None
    return (
        f"{recipe.data.catalog}: levels of {config.learner.kind} do not refine each other, so model.item.{what} join "
        "independent codes; granularities s1, s2, .. keep them apart"
    )


def read_dataset(recipe: Recipe) -> Dataset:
    """Reads everything in this process alone; for commands that run without ranks.

    Raises ConfigError or ContractError.
    """
    manifest, catalog = read_contracts(recipe)
    check_item_ids(recipe, manifest, catalog)
    return assemble_dataset(recipe, manifest, catalog, fit_item_subwords(recipe, manifest, catalog))


def fit_item_subwords(recipe: Recipe, manifest: Manifest, catalog: Catalog | None) -> bytes | None:
    """Fits the SentencePiece model that cuts SIDs into subwords; None if the recipe uses granularities."""
    sids = recipe.model.item.sids
    if catalog is None or sids is None or sids.subwords is None:
        return None
    ids = manifest.ids[ITEM_ID]
    impressions_I = impressions_by_id(recipe.data.path / ITEMS, ids)
    return fit_subwords(catalog.codes_by_id(ids), impressions_I, catalog.codebook_sizes, sids.subwords)


def assemble_dataset(
    recipe: Recipe, manifest: Manifest, catalog: Catalog | None, fitted: bytes | None, *, moments: bool = True
) -> Dataset:
    """The dataset of a manifest and a catalog. fitted: what `fit_item_subwords` returned.

    moments: read those of the statistics from the train split, and the granules' impressions. A model that is loaded
    has its own: then they are 0 and 1, and none. Raises ConfigError or ContractError.
    """
    subwords = Subwords(fitted, catalog.codebook_sizes) if fitted is not None and catalog is not None else None
    item = recipe.model.item
    if item.weighs_by_statistics and not manifest.stats:
        raise ContractError("model.item.contrast.strength", "a log with stat_* columns, which it reads", "none")
    columns = columns_of(recipe.data, recipe.model, manifest)
    content = None
    if item.content_columns:
        content = ContentVectors(recipe.data.path / ITEMS, item.content_columns, manifest.ids[ITEM_ID])
    try:
        tables = item_tables(item, manifest, catalog, subwords, content)
        if catalog is not None and recipe.model.history_pooling.searches_sids:
            tables = replace(tables, codes_IL=catalog.codes_by_id(manifest.ids[ITEM_ID]).astype(np.int32))
    except MemoryError as error:
        where = f"{recipe.data.path / LOG / MANIFEST}, ids.{ITEM_ID}"
        got = f"{manifest.ids[ITEM_ID]} ({error})"
        raise ContractError(where, "item ids whose lookups memory has room for", got) from None
    mean_S, std_S = np.zeros(len(manifest.stats)), np.ones(len(manifest.stats))
    if moments:
        mean_S, std_S = stat_moments(recipe.data.path, manifest)
    sizes = Sizes(
        item_tables=tables.tables,
        context_rows={column: manifest.ids[column] for column in recipe.model.context},
        dense=len(columns.log.dense),
        stats_mean=tuple(mean_S.tolist()),
        stats_std=tuple(std_S.tolist()),
        content=content.width if content else 0,
        rows_per_lane=recipe.data.batch_size // recipe.data.lanes,
        context_lists={column: entry.mean for column, entry in columns.log.lists.items()},
        impressions=_granule_impressions(recipe, manifest, tables) if moments else {},
    )
    sid_rows = _sid_rows(catalog, subwords, tables, manifest.ids[ITEM_ID]) if catalog else {}
    return Dataset(manifest, tables, sizes, next(reversed(sid_rows), None), sid_rows)


def _granule_impressions(recipe: Recipe, manifest: Manifest, tables: ItemTables) -> dict[str, NDArray[np.int64]]:
    """Granularity -> train impressions of the items of each row; none for row 0, and without a fusion that counts."""
    sids = recipe.model.item.sids
    if sids is None or not sids.fusion.needs_counts:
        return {}
    impressions_I = impressions_by_id(recipe.data.path / ITEMS, manifest.ids[ITEM_ID])
    found = {}
    for name in sids.granularities:
        rows_I = tables.rows_of(name)
        found[name] = np.bincount(rows_I, impressions_I * (rows_I > 0), minlength=tables.tables[name].rows)
    return {name: counts_R.astype(np.int64) for name, counts_R in found.items()}


def _sid_rows(
    catalog: Catalog, subwords: Subwords | None, tables: ItemTables, ids: int
) -> dict[str, Mapping[str, int]]:
    """The last fingerprint is that of the data. Subwords are fitted on one log: they have no earlier one."""
    rows = tables.sid_rows(catalog.extension_by_id(ids), len(catalog.fingerprints))
    if subwords is not None:
        return {f"{catalog.fingerprint}, subwords {subwords.fingerprint}": rows[-1]}
    return dict(zip(catalog.fingerprints, rows, strict=True))


def stat_moments(
    data: Place, manifest: Manifest, split: str = "train", rows: int = 1_000_000
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of log1p(stat_*), float64 [S] each, over about `rows` rows of the split.

    Reads row groups at equal distances, so that every period of the log is sampled; reads small splits whole. Rows
    whose counts break the contract are left out: the reader refuses or quarantines them.
    Raises ContractError as `split_index` does, and for a row group that cannot be read.
    """
    groups = split_index(data / LOG, split, manifest)
    wanted = max(1, min(len(groups), round(len(groups) * rows / max(1, manifest.rows(split)))))
    total, first, second = 0, np.zeros(len(manifest.stats)), np.zeros(len(manifest.stats))
    for position in np.linspace(0, len(groups) - 1, wanted).round().astype(int):
        counts_NS = _counts(groups[position], manifest.stats)
        logs_NS = np.log1p(counts_NS[(np.isfinite(counts_NS) & (counts_NS >= 0)).all(axis=1)])
        total += len(logs_NS)
        first += logs_NS.sum(axis=0)
        second += np.square(logs_NS).sum(axis=0)
    mean = first / max(1, total)
    return mean, np.sqrt(np.maximum(second / max(1, total) - np.square(mean), 0))


def _counts(group: RowGroup, stats: tuple[str, ...]) -> np.ndarray:
    """float64 [N, S], NaN for a missing value."""
    try:
        with open_parquet(group.path) as file:
            table = file.read_row_group(group.group, columns=list(stats))
    except (pa.ArrowException, OSError) as error:
        where = f"{group.path}, row group {group.group}"
        raise ContractError(where, "readable column data", " ".join(str(error).split())) from None
    return np.stack([table[name].to_numpy() for name in stats], axis=1, dtype=np.float64)
