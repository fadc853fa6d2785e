"""Whether data means to a checkpoint what its own data meant: the same ids, catalog and numbers.

Ids and codes are row numbers of tables, and the layers know columns by their place alone. Other data of the same shape
would be scored without an error and wrongly, so a checkpoint records id maps, catalog and columns (`Position`).
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from sidrec.checkpoint.train_state import Inputs, Position
from sidrec.data.dataset import Dataset
from sidrec.errors import CheckpointError, ContractError
from sidrec.id_maps import IdMaps, check_grown
from sidrec.schema import MapDigest


def check_own_data(path: Path, position: Position, data: Dataset, inputs: Inputs) -> None:
    """Raises CheckpointError unless the data is that which the checkpoint `path` was trained on: same ids and columns.

    Id maps are compared only where both have them.
    """
    for column, known in position.id_maps.items():
        found = data.manifest.id_maps.get(column)
        if found is not None and found != known:
            trained, now = IdMaps(position.id_maps).fingerprint, IdMaps(data.manifest.id_maps).fingerprint
            raise CheckpointError(
                f"{path}: expected the {known.ids:,} ids of {column} it was trained with (id maps {trained}), got "
                f"{found.ids:,} others (id maps {now}); `sidrec evaluate --data` scores data with more ids, and "
                "start.checkpoint trains on it"
            )
    check_inputs(path, position, inputs)


def check_grown_ids(path: Path, id_maps: Mapping[str, MapDigest], data: Path) -> str:
    """Checks that a data folder has the ids that the checkpoint `path` was trained with, or these and more.

    id_maps: of the columns that the checkpoint's tables are read by. Returns a warning if nothing could be checked,
    else "". Raises CheckpointError naming the column, both fingerprints and what to do.
    """
    try:
        return check_grown(IdMaps(id_maps), path, data)
    except ContractError as error:
        raise CheckpointError(str(error)) from None


def check_inputs(path: Path, position: Position, inputs: Inputs) -> None:
    """Raises CheckpointError if the columns that the layers read are others, in another order or of another scale."""
    trained = position.inputs
    if trained is None:
        return
    for kind, before, now in (("dense", trained.dense, inputs.dense), ("statistics", trained.stats, inputs.stats)):
        if before != now:
            raise CheckpointError(
                f"{path}: expected the {kind} columns it was trained with, {', '.join(before) or 'none'}, got "
                f"{', '.join(now) or 'none'}"
            )
    for column, transform in trained.transforms.items():
        found = inputs.transforms.get(column)
        scale = None if found is None else (found.mean, found.deviation)
        if scale != (transform.mean, transform.deviation):
            got = "none" if scale is None else f"mean {scale[0]:g} and deviation {scale[1]:g}"
            raise CheckpointError(
                f"{path}: expected {column} with the mean {transform.mean:g} and deviation {transform.deviation:g} it "
                f"was trained with, got {got}; prepare the data with --ids and the data folder of the run"
            )


def trained_sid_rows(
    path: Path, position: Position, data: Dataset, without: Collection[str] = (), remedy: str = ""
) -> Mapping[str, int]:
    """SID table -> its rows when the checkpoint was trained; the first rows of this data's tables.

    without: tables that take nothing from the checkpoint. remedy: appended to the message. Raises CheckpointError if
    the data's catalog is neither the checkpoint's nor extended from it: its codes are other rows.
    """
    if position.catalog is not None and position.catalog in data.sid_rows:
        return data.sid_rows[position.catalog]
    if all(table in without for table in data.tables.sid_tables):
        return {}
    raise CheckpointError(
        f"{path}: expected the catalog {position.catalog} it was trained with, or one that `sidrec fit --extend` made "
        f"from it, got {data.fingerprint}, whose codes are other rows{remedy}"
    )


def check_rows(path: Path, trained: Mapping[str, int], sid_rows: Mapping[str, int]) -> None:
    """Raises CheckpointError if this data numbers the codes of the checkpoint's catalog differently.

    trained: table -> rows of the checkpoint. sid_rows: from `trained_sid_rows`. A log with other items of the same
    catalog has other codes, and so other rows.
    """
    for table, rows in sid_rows.items():
        if trained.get(table) != rows:
            raise CheckpointError(
                f"{path}: expected {trained.get(table, 0):,} rows of {table}, got {rows:,}: this log has other items "
                "of the catalog than the log it was trained on"
            )
