"""What a recipe's data folder and catalog hold, read and checked before anything is allocated."""

from dataclasses import dataclass

from torch import distributed as dist

from sidrec.config import Recipe
from sidrec.config.item import ContentItem, SemanticItem
from sidrec.config.tokens import SpmTokens
from sidrec.data.content import ContentVectors
from sidrec.data.item_tables import ItemTables, item_tables
from sidrec.data.loader import columns_of
from sidrec.data.moments import stat_moments
from sidrec.data.train_impressions import impressions_by_id
from sidrec.model.sizes import Sizes
from sidrec.parallel.process_group import Ranks, together
from sidrec.schema import ITEM_ID, ITEMS, LOG, MANIFEST, ContractError, Manifest, load_manifest
from sidrec.sid.catalog import Catalog, load_catalog
from sidrec.sid.subwords import Subwords, fit_subwords


@dataclass(frozen=True)
class Data:
    """What a recipe's data folder and catalog hold.

    fingerprint: the catalog's, and that of the subwords its SIDs are cut into; None where items have no SIDs.
    """

    manifest: Manifest
    tables: ItemTables
    sizes: Sizes
    fingerprint: str | None


def open_data(recipe: Recipe, ranks: Ranks) -> Data:
    """Reads manifest and catalog and checks them against the recipe, on all ranks together.

    Raises ConfigError or ContractError, before anything is allocated.
    """
    manifest, catalog = together(ranks, lambda: _read_contracts(recipe))
    subwords = _open_subwords(recipe, manifest, catalog, ranks)
    return together(ranks, lambda: _read(recipe, manifest, catalog, subwords))


def _read_contracts(recipe: Recipe) -> tuple[Manifest, Catalog | None]:
    manifest = load_manifest(recipe.data.path / LOG)
    return manifest, load_catalog(recipe.data.catalog) if isinstance(recipe.model.item, SemanticItem) else None


def read_data(recipe: Recipe) -> Data:
    """The same for a process that is no rank: one that plans for ranks which are not there."""
    manifest, catalog = _read_contracts(recipe)
    fitted = _fit_subwords(recipe, manifest, catalog)
    subwords = Subwords(fitted, catalog.codebook_sizes) if fitted is not None and catalog is not None else None
    return _read(recipe, manifest, catalog, subwords)


def _open_subwords(recipe: Recipe, manifest: Manifest, catalog: Catalog | None, ranks: Ranks) -> Subwords | None:
    """Rank 0 learns the subwords and all ranks get them: machines that round differently must not disagree."""
    fitted = [together(ranks, lambda: _fit_subwords(recipe, manifest, catalog) if ranks.first else None)]
    if ranks.world > 1:
        dist.broadcast_object_list(fitted, src=0, group=ranks.control)
    return Subwords(fitted[0], catalog.codebook_sizes) if fitted[0] is not None and catalog is not None else None


def _fit_subwords(recipe: Recipe, manifest: Manifest, catalog: Catalog | None) -> bytes | None:
    """None where the recipe's items are not cut into subwords."""
    item = recipe.model.item
    if catalog is None or not isinstance(item, SemanticItem) or not isinstance(item.tokens, SpmTokens):
        return None
    ids = manifest.ids[ITEM_ID]
    impressions_I = impressions_by_id(recipe.data.path / ITEMS, ids)
    return fit_subwords(catalog.codes_by_id(ids), impressions_I, catalog.codebook_sizes, item.tokens.vocabulary)


def _read(recipe: Recipe, manifest: Manifest, catalog: Catalog | None, subwords: Subwords | None) -> Data:
    item = recipe.model.item
    columns = columns_of(recipe.data, recipe.model, manifest)
    content = None
    if isinstance(item, ContentItem):
        content = ContentVectors(recipe.data.path / ITEMS, item.vectors, manifest.ids[ITEM_ID])
    try:
        tables = item_tables(item, manifest, catalog, subwords, content)
    except MemoryError as error:
        where = f"{recipe.data.path / LOG / MANIFEST}, ids.{ITEM_ID}"
        got = f"{manifest.ids[ITEM_ID]} ({error})"
        raise ContractError(where, "item ids whose lookups memory has room for", got) from None
    mean_S, std_S = stat_moments(recipe.data.path, manifest)
    sizes = Sizes(
        item_tables=tables.tables,
        context_rows={column: manifest.ids[column] for column in recipe.model.context},
        dense=len(columns.log.dense),
        stats_mean=tuple(mean_S.tolist()),
        stats_std=tuple(std_S.tolist()),
        content=content.width if content else 0,
        rows_per_lane=recipe.data.batch_size // recipe.data.lanes,
    )
    return Data(manifest, tables, sizes, _fingerprint(catalog, subwords))


def _fingerprint(catalog: Catalog | None, subwords: Subwords | None) -> str | None:
    if catalog is None:
        return None
    return catalog.fingerprint if subwords is None else f"{catalog.fingerprint}, subwords {subwords.fingerprint}"
