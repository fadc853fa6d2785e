"""A log of MIND (news): the rows that were shown, after the clicks that users made before.

    python -m benchmarks.mind_piece SOURCE log.csv
    sidrec prep interactions log.csv data/mind --label-column clicked --items-file SOURCE/items.csv.gz \
        --text-columns title --item-cat-columns category subcategory --history 30 \
        --train-from 1573257673 --validation-from 2019-11-13 --test-from 2019-11-14
    sidrec prep behavior data/mind --epochs 10 --no-check
    sidrec fit benchmarks/recipes/mind_piece.yaml
    sidrec train benchmarks/recipes/mind_piece.yaml

SOURCE holds interactions.csv.gz (user_id, item_id, timestamp, clicked), histories.csv.gz (user_id, earlier_clicks: ids
with blanks between, oldest first) and items.csv.gz. Earlier clicks have an order and no times: the last of a user gets
the second before the first row that was shown, each other one a minute less. `--train-from` keeps them out of training:
they only feed histories and statistics, in which they count as shown and clicked.
"""

import sys
from pathlib import Path

import polars as pl

SECONDS = 60  # between two earlier clicks


def mind_log(source: Path, users: int | None = None) -> pl.DataFrame:
    """Columns user_id, item_id, timestamp, clicked; earlier clicks first. users: of the first users alone."""
    shown = pl.read_csv(source / "interactions.csv.gz").select("user_id", "item_id", "timestamp", "clicked")
    earlier = pl.read_csv(source / "histories.csv.gz").drop_nulls()
    if users is not None:
        kept = shown["user_id"].unique(maintain_order=True)[:users]
        shown, earlier = (table.filter(pl.col("user_id").is_in(kept.implode())) for table in (shown, earlier))
    last = int(shown["timestamp"].to_numpy().min()) - 1
    clicks = earlier.select("user_id", item_id=pl.col("earlier_clicks").str.split(" "))
    later = pl.int_ranges(pl.col("item_id").list.len() - 1, -1, -1)  # clicks after this one
    times = (last - SECONDS * pl.col("later")).cast(pl.Int64)
    exploded = clicks.with_columns(later=later).explode("item_id", "later")
    return pl.concat([exploded.select("user_id", "item_id", timestamp=times, clicked=pl.lit(1, pl.Int64)), shown])


def main(source: Path, out: Path) -> None:
    log = mind_log(source)
    log.write_csv(out)
    print(f"{out}: {len(log):,} rows, {log['user_id'].n_unique():,} users, {log['item_id'].n_unique():,} items")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
