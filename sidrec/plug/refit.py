"""A plugged model whose catalog was fitted again goes on from a state dict of the old catalog.

Shapes: I item ids, R rows of a table, G granularities.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sidrec.model.fusion_and_gate import IMPRESSIONS
from sidrec.plug.sid_coord import SidCoord
from sidrec.schema import ContractError
from sidrec.sid.carried_rows import CarriedRows, carried_text
from sidrec.sid.catalog import Catalog, load_catalog
from sidrec.sid.granularity import granularity_rows, rows_by_extension

WHERE = "state dict of a plugged model"


def carry_sids(state: Mapping[str, Tensor], model: nn.Module, old_catalog: Catalog | Path | str) -> dict[str, Tensor]:
    """A state dict of the old catalog as one that the model, which has the new catalog, loads.

    SID tables are carried over by the items that both catalogs hold, as `start.old_catalog` does; prints how many rows
    were carried and how many keep the values that they have in the model. Everything else stays as it is in `state`.
    Optimizers are the host's: the sums of an Adagrad belong to the old rows, and begin anew.

    state: whole tensors, those of a model that is not sharded. old_catalog: the catalog of `state`, or one extended
    from it. Raises ContractError for another catalog, for a sharded model, and where no item is in both catalogs.
    """
    old = old_catalog if isinstance(old_catalog, Catalog) else load_catalog(Path(old_catalog))
    plugged = {name: module for name, module in model.named_modules() if isinstance(module, SidCoord)}
    if not plugged:
        raise ContractError(type(model).__name__, "a model with SidCoord", "none")
    found, fresh = dict(state), model.state_dict()
    for name, module in plugged.items():
        prefix = f"{name}." if name else ""
        found |= _carried(prefix, module, state, fresh, old)
        found[f"{prefix}catalog_fingerprint"] = fresh[f"{prefix}catalog_fingerprint"]
    return found


def _carried(
    prefix: str, module: SidCoord, state: Mapping[str, Tensor], fresh: Mapping[str, Tensor], old: Catalog
) -> dict[str, Tensor]:
    """fresh: the model's own state, for rows that nothing is carried to."""
    trained = _trained_fingerprint(prefix, state, old)
    if module.fingerprint in old.fingerprints:
        raise ContractError(WHERE, "a model whose catalog was fitted again", "one with the old catalog")
    rows_IG = module.join.rows_IG.cpu().numpy()
    extension_I = old.extension_by_id(len(rows_IG))
    carried, items = {}, 0
    values: dict[str, Tensor] = {}
    for place, name in enumerate(module.join.granularities):
        old_rows_I, _ = granularity_rows(old.codes_by_id(len(rows_IG)), name, extension_I)
        old_rows = rows_by_extension(old_rows_I, extension_I, len(old.fingerprints))[old.fingerprints.index(trained)]
        rows_I1 = rows_IG[:, [place]]
        table = f"{prefix}sid_tables.embedding_bags.{name}.weight"
        carried[name] = CarriedRows.of(rows_I1, old_rows_I[:, None], int(rows_I1.max()) + 1, old_rows)
        items = int(((rows_I1[:, 0] > 0) & (old_rows_I > 0)).sum())
        counts = [key for key in fresh if key.startswith(prefix) and key.endswith(f".{IMPRESSIONS}{name}")]
        for key in (table, *counts):
            values[key] = _table(key, carried[name], state, fresh, divided=key != table)
    if not items:
        raise ContractError(WHERE, "items that both catalogs hold", "none")
    print(f"{prefix or type(module).__name__}: SID tables carried by {items:,} items: {carried_text(carried)}")
    return values


def _trained_fingerprint(prefix: str, state: Mapping[str, Tensor], old: Catalog) -> str:
    key = f"{prefix}catalog_fingerprint"
    if key not in state:
        raise ContractError(WHERE, f"a key {key}", "none of that name")
    trained = bytes(state[key].tolist()).hex()
    if trained not in old.fingerprints:
        raise ContractError("old catalog", f"{trained}, which the state dict was trained with", old.fingerprint)
    return trained


def _table(
    key: str, rows: CarriedRows, state: Mapping[str, Tensor], fresh: Mapping[str, Tensor], *, divided: bool
) -> Tensor:
    before, now = state.get(key), fresh[key]
    whole = all(type(found) in (Tensor, nn.Parameter) for found in (before, now)) and not now.is_meta
    if before is None or not whole:
        raise ContractError(
            f"{WHERE}, {key}", "whole tensors: carry before the model is sharded", type(before).__name__
        )
    if before.shape != (rows.old_rows, now.shape[1]):
        expected = f"{[rows.old_rows, now.shape[1]]}, as the old catalog has with this item table"
        raise ContractError(f"{WHERE}, {key}", expected, list(before.shape))
    sources = rows.parts(0, rows.rows) if divided else rows.means(0, rows.rows)
    carried_RW = torch.zeros(now.shape)
    sources.add(0, before.float().cpu(), carried_RW)
    made = now.detach().clone()
    sources.replace(made, carried_RW)
    return made
