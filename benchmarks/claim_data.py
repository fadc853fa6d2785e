"""The data folders of the claim's studies, from public data sets.

    python -m benchmarks.claim_data --shared FOLDER_WITH_PUBLIC_SETS --out data/claim [--only beauty yelp]

FOLDER_WITH_PUBLIC_SETS holds amazon-beauty/, yelp/, ml-latest-small/ and mind-piece/; for the sets movielens_100k*,
which are prepared only when asked for, ml-100k/ of RecBole's wheel. Folders that exist are left as they are, so that a
stopped preparation continues.

| set | rows | split |
|---|---|---|
| beauty, yelp | every purchase or visit, and one sampled negative each | in time, 80/10/10 |
| movielens | every rating; positive from 4 stars | in time, 80/10/10 |
| movielens_users | the same rows | each user's last 10%, the 10% before them |
| mind | rows that were shown | by day: the last is test, the one before it validation |
| movielens_100k, movielens_100k_users | as movielens and movielens_users; for the preset's transfer | as theirs |
| beauty_behavior_25, _50, _100 | as beauty, with behaviour from the earliest 25% to 100% of train | as its |
| *_early | the same, of a log that ends before its last 20% of events | in time, 80/10/10 |
| *_x1 | one negative each, drawn uniformly | each user's last event, the one before it |

Sampled negatives follow popularity in the preceding 30 days with a floor for launched items (`data_prep.negatives`). In
*_x1 they are uniform over launched items, as in AmazonElectronics_x1, whose negatives may also be items of the future.
An early log lists only items that occur in it. Texts: MiniLM's vectors for Beauty, else wordllama's. MIND's earlier
clicks only feed histories, statistics and behaviour vectors; 3% of its shown rows are on items with text.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.mind_piece import mind_log
from data_prep.amazon import AmazonCommand
from data_prep.behavior import BehaviorCommand
from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from data_prep.item_vectors import ItemVectors
from data_prep.movielens import MovieLensCommand
from sidrec.errors import ContractError

EARLY_SHARE = 0.8  # of the events, in an early log
BY_TIME = LogSettings(history=50, split="global", validation_share=0.1, test_share=0.1)
BY_USER = replace(BY_TIME, split="per-user-last")
X1 = replace(BY_TIME, split="last", validation_share=None, test_share=None, floor_weight=1e9, launch_draws=0.0)
SHOWN_FROM, VALIDATION_FROM, TEST_FROM = "1573257673", "2019-11-13", "2019-11-14"  # of MIND's piece


@dataclass(frozen=True)
class PublicSet:
    """A public data set: its folder, its files of events and items, their column of the item; how it is prepared."""

    folder: str
    events: str
    items: str
    event_item: str
    prepare: Callable[[Path, Path, LogSettings], None]
    vectors: str | None = None
    """File with a row per row of `items`."""


def prepare_beauty(source: Path, out: Path, settings: LogSettings) -> None:
    AmazonCommand(source, out, settings, vectors=str(source / BEAUTY_VECTORS)).run()


def prepare_yelp(source: Path, out: Path, settings: LogSettings) -> None:
    columns = Columns(items_file=source / "items.csv.gz", text_columns=("categories",))
    InteractionsCommand(source / "interactions.csv.gz", out, columns, settings, vectors="wordllama").run()


def prepare_movielens(source: Path, out: Path, settings: LogSettings) -> None:
    MovieLensCommand(source, out, settings).run()


BEAUTY_VECTORS = "minilm_l6_v2_title_brand_cat_f16.npy"
BEAUTY = PublicSet("amazon-beauty", "interactions.csv.gz", "items.csv.gz", "item_id", prepare_beauty, BEAUTY_VECTORS)
YELP = PublicSet("yelp", "interactions.csv.gz", "items.csv.gz", "item_id", prepare_yelp)
MOVIELENS = PublicSet("ml-latest-small", "ratings.csv", "movies.csv", "movieId", prepare_movielens)


def prepare_mind(shared: Path, out: Path) -> None:
    """Behaviour vectors come from the earlier clicks alone, which train leaves out.

    News live for a day or two: of most items shown in train, the clicks there are all clicks, so that having a vector
    would tell the label.
    """
    source, scratch = shared / "mind-piece", out.with_name("sources") / "mind"
    scratch.mkdir(parents=True, exist_ok=True)
    log = scratch / "log.csv"
    mind_log(source).write_csv(log)
    columns = Columns(
        label_column="clicked",
        items_file=source / "items.csv.gz",
        text_columns=("title", "abstract"),
        item_cat_columns=("category", "subcategory"),
    )
    clicks = LogSettings(validation_from=VALIDATION_FROM, test_from=TEST_FROM, overwrite=True)
    before = replace(clicks, validation_from=SHOWN_FROM)
    InteractionsCommand(log, scratch / "clicks", columns, before, vectors="none").run()
    BehaviorCommand(scratch / "clicks", check=False).run()
    column = pl.read_parquet(scratch / "clicks" / "items.parquet")["behavior"]
    np.save(scratch / "behavior.npy", column.to_numpy())
    InteractionsCommand(
        log, scratch / "data", columns, replace(clicks, train_from=SHOWN_FROM), vectors="wordllama"
    ).run()
    ItemVectors(scratch / "data", str(scratch / "behavior.npy"), "behavior").run()
    (scratch / "data").rename(out)


def movielens_100k(split: LogSettings) -> Callable[[Path, Path], None]:
    """MovieLens 100K, from the files of RecBole."""

    def prepare(shared: Path, out: Path) -> None:
        source, files = out.with_name("sources") / out.name, shared / "ml-100k"
        source.mkdir(parents=True, exist_ok=True)
        events = pl.read_csv(files / "ml-100k.inter", separator="\t", has_header=False, skip_rows=1)
        events.columns = ["userId", "movieId", "rating", "timestamp"]
        events.write_csv(source / MOVIELENS.events)
        items = pl.read_csv(files / "ml-100k.item", separator="\t", has_header=False, skip_rows=1, infer_schema=False)
        items.columns = ["movieId", "title", "year", "genres"]
        title = pl.format("{} ({})", "title", "year")
        items = items.select("movieId", title=title, genres=pl.col("genres").str.replace_all(" ", "|"))
        items.write_csv(source / MOVIELENS.items)
        prepare_movielens(source, out, split)

    return prepare


def early_source(public: PublicSet, source: Path, folder: Path) -> Path:
    """Writes the set's log without its last events, and the items that are left. Returns the folder.

    Events at the time of the first one that is left out are left out as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    events = pl.read_csv(source / public.events)
    end = events["timestamp"].sort()[int(len(events) * EARLY_SHARE)]
    kept = events.filter(pl.col("timestamp") < end)
    items = pl.read_csv(source / public.items, infer_schema=False).with_row_index("row")
    left = items.filter(pl.col(public.event_item).is_in(kept[public.event_item].cast(pl.String).unique().implode()))
    if public.vectors is not None:
        np.save(folder / public.vectors, np.load(source / public.vectors)[left["row"].to_numpy()])
    for name, table in ((public.items, left.drop("row")), (public.events, kept)):
        table.write_csv(folder / name, compression="gzip" if name.endswith(".gz") else "uncompressed")
    return folder


def by_time(public: PublicSet) -> Callable[[Path, Path], None]:
    return lambda shared, out: public.prepare(shared / public.folder, out, BY_TIME)


def with_behavior(public: PublicSet, settings: LogSettings, share: float = 1.0) -> Callable[[Path, Path], None]:
    """With the item vectors and pairs of `data_prep.behavior`, from the earliest `share` of train's positives."""

    def prepare(shared: Path, out: Path) -> None:
        data = out.with_name("sources") / out.name / "data"
        data.parent.mkdir(parents=True, exist_ok=True)
        public.prepare(shared / public.folder, data, replace(settings, overwrite=True))
        BehaviorCommand(data, check=False, earliest_share=share).run()
        data.rename(out)

    return prepare


def early(public: PublicSet) -> Callable[[Path, Path], None]:
    def prepare(shared: Path, out: Path) -> None:
        source = early_source(public, shared / public.folder, out.with_name("sources") / out.name)
        public.prepare(source, out, BY_TIME)

    return prepare


def x1(public: PublicSet) -> Callable[[Path, Path], None]:
    return lambda shared, out: public.prepare(shared / public.folder, out, X1)


SETS: dict[str, Callable[[Path, Path], None]] = {
    "beauty": by_time(BEAUTY),
    "yelp": by_time(YELP),
    "movielens": with_behavior(MOVIELENS, BY_TIME),
    "movielens_users": with_behavior(MOVIELENS, BY_USER),
    "mind": prepare_mind,
    "beauty_early": early(BEAUTY),
    "yelp_early": early(YELP),
    "movielens_early": early(MOVIELENS),
    "beauty_x1": x1(BEAUTY),
    "yelp_x1": x1(YELP),
}
LATER_SETS: dict[str, Callable[[Path, Path], None]] = {
    "movielens_100k": movielens_100k(BY_TIME),
    "movielens_100k_users": movielens_100k(BY_USER),
    **{f"beauty_behavior_{share}": with_behavior(BEAUTY, BY_TIME, share / 100) for share in (25, 50, 100)},
}
"""For the preset's transfer, and for learners that use behaviour: prepared when asked for by name."""


def prepare_sets(shared: Path, out: Path, names: list[str]) -> None:
    """Prepares those of the sets that OUT does not hold. Raises ContractError for an unknown name."""
    known = SETS | LATER_SETS
    for name in names:
        if name not in known:
            raise ContractError("--only", f"some of {', '.join(known)}", name)
    for number, name in enumerate(names, 1):
        print(f"{number}/{len(names)} {name}")
        if not (out / name).exists():
            known[name](shared, out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(SETS | LATER_SETS)
    parser.add_argument("--shared", type=Path, required=True, metavar="FOLDER", help="holds the public data sets")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets a data folder for each set")
    parser.add_argument("--only", nargs="+", default=list(SETS), metavar="SET", help=f"of {names}")
    arguments = parser.parse_args()
    prepare_sets(arguments.shared, arguments.out, arguments.only)


if __name__ == "__main__":
    main()
