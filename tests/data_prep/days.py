"""Days of a raw log, prepared one after another."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from sidrec import schema
from sidrec.id_maps import source_ids
from tests.data_prep.event_lists import DAY

SETTINGS = LogSettings(history=5, validation_share=0.0, test_share=0.3)
COLUMNS = Columns(label_column="label", cat_columns=("device",))
WITH_ITEMS = replace(COLUMNS, items_id_column="sku", text_columns=("name",), item_cat_columns=("brand",))
HEADER = "user_id,item_id,timestamp,label,device"


@dataclass
class Days:
    """Writes the raw files of a day, and prepares them into a folder named after it."""

    folder: Path
    columns: Columns = COLUMNS

    def prepare(self, day: str, rows: list[str], items: list[str] | None = None, **flags: object) -> Path:
        log, columns = self.folder / f"{day}.csv", self.columns
        log.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
        if items is not None:
            path = self.folder / f"{day}-items.csv"
            path.write_text("\n".join(["sku,name,brand", *items]) + "\n", encoding="utf-8")
            columns = replace(WITH_ITEMS, items_file=path)
        out = self.folder / day
        InteractionsCommand(log, out, columns, replace(SETTINGS, **flags), vectors="none").run()  # type: ignore[arg-type]
        return out


def rows(*events: str, day: int = 0) -> list[str]:
    """Positives: "ann a tv" is user ann on item a, on the device tv. A minute lies between two of them."""
    parts = [[*event.split(" "), ""][:3] for event in events]
    return [f"{user},{item},{day * DAY + 60 * k},1,{device}" for k, (user, item, device) in enumerate(parts)]


def maps(data: Path) -> dict[str, list[str]]:
    return {column: source_ids(data, column).to_pylist() for column in schema.load_manifest(data / "log").id_maps}


def items_of(data: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(data / schema.ITEMS).to_pylist())


DAY_ONE = rows("ann a tv", "bob b tv", "ann c tv", "bob a tv")
DAY_TWO = rows("ann a tv", "bob d tv", "cid c tv", "ann e tv", day=1)
LISTED = ["b,Bread,Baker", "a,Apples,Farm", "q,Quince,Farm"]
