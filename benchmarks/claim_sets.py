"""Sizes of the claim's data sets: rows, users, items, and how many of them the metrics rest on.

    python -m benchmarks.claim_sets data/claim [--write]

Reads the folders of `benchmarks.claim_data`. --write puts the table into claim_sets.md. GAUC covers users with both
labels in a split; a cold item has no row in the splits trained on (train for validation, both for test).
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from benchmarks.claim_data import SETS
from sidrec.io.files import write_text
from sidrec.schema import ITEMS, LOG

TABLE = Path(__file__).parent / "claim_sets.md"
NOTE = """# The claim's data sets

Written by `python -m benchmarks.claim_sets data/claim --write` from the folders of `python -m benchmarks.claim_data`.
known: users with a row in the splits trained on (train for validation, train and validation for test). in GAUC: users
with both labels in the split. Cold items have no row in the splits trained on.

"""
TRAINED_ON = {"validation": ("train",), "test": ("train", "validation")}


@dataclass(frozen=True)
class SplitSize:
    """Counts of a split. known_users: with a row in the splits trained on. covered: users with both labels."""

    rows: int
    positives: int
    users: int
    known_users: int
    covered: int
    items: int

    @classmethod
    def of(cls, rows: pl.DataFrame, trained_on: pl.DataFrame) -> "SplitSize":
        label = pl.col("label")
        by_user = rows.group_by("user_id").agg(least=label.min(), most=label.max())
        known = by_user["user_id"].is_in(trained_on["user_id"].unique().implode())
        covered = by_user.filter((pl.col("least") == 0) & (pl.col("most") == 1))
        positives = int(rows["label"].sum())
        return cls(len(rows), positives, len(by_user), int(known.sum()), len(covered), rows["item_id"].n_unique())


@dataclass(frozen=True)
class SetSize:
    """Counts of a data folder: its splits, the cold rows of two of them, and listed items with a vector."""

    train: int
    items: int
    with_text: int
    evaluated: dict[str, tuple[SplitSize, SplitSize]]
    """Split -> all its rows, its cold rows."""


def set_size(folder: Path) -> SetSize:
    rows = {split: _rows(folder, split) for split in ("train", "validation", "test")}
    evaluated = {}
    for split, names in TRAINED_ON.items():
        trained_on = pl.concat([rows[name] for name in names])
        cold = rows[split].filter(~pl.col("item_id").is_in(trained_on["item_id"].unique().implode()))
        evaluated[split] = SplitSize.of(rows[split], trained_on), SplitSize.of(cold, trained_on)
    text = pl.read_parquet(folder / ITEMS, columns=["text"])["text"]
    with_text = int((text.arr.max() != text.arr.min()).sum())
    return SetSize(len(rows["train"]), len(text), with_text, evaluated)


def _rows(folder: Path, split: str) -> pl.DataFrame:
    return pl.read_parquet(folder / LOG / split / "*.parquet", columns=["label", "user_id", "item_id"])


def table(sizes: dict[str, SetSize]) -> str:
    """A Markdown table with a line for each set and split."""
    header = (
        *("set", "items", "with text", "train rows", "split", "rows", "positive", "users", "known", "in GAUC"),
        *("items shown", "cold rows", "cold positive", "users in cold GAUC", "cold items"),
    )
    lines = [header, ("---",) * len(header)]
    for name, size in sizes.items():
        for split, (all_rows, cold) in size.evaluated.items():
            counts = (size.items, size.with_text, size.train)
            first = (name, *(f"{count:,}" for count in counts)) if split == "validation" else ("",) * 4
            shown = (all_rows.users, all_rows.known_users, all_rows.covered, all_rows.items)
            line = [*first, split, f"{all_rows.rows:,}", _share(all_rows.positives, all_rows.rows)]
            line += [f"{count:,}" for count in shown]
            line += [f"{cold.rows:,} ({_share(cold.rows, all_rows.rows)})", _share(cold.positives, cold.rows)]
            lines.append((*line, f"{cold.covered:,}", f"{cold.items:,}"))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds a data folder for each set")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    arguments = parser.parse_args()
    found = {name: set_size(arguments.data / name) for name in SETS if (arguments.data / name).is_dir()}
    text = table(found)
    print(text, end="")
    if arguments.write:
        write_text(TABLE, NOTE + text)


if __name__ == "__main__":
    main()
