"""Behaviour vectors and item pairs from the train split: `python -m data_prep.behavior DATA`.

Writes the column `behavior` of DATA/items.parquet (SASRec's item vectors as they are, all zeros for items without train
positives), and beside it pairs.parquet, behavior.json and behavior.png.

M items of the train split, N rows of items.parquet, D width.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from data_prep.behavior_report import draw_norms, norm_and_frequency
from data_prep.command import run
from data_prep.item_pairs import PairSettings, item_pairs, write_pairs
from data_prep.item_vectors import add_vectors
from data_prep.next_item_check import HitRates, check_next_item
from data_prep.sasrec_training import SasRecSettings, train_sasrec
from data_prep.sequences import Sequences, read_sequences
from data_prep.work_folder import PICTURE, REPORT, is_behavior_report
from sidrec import schema
from sidrec.schema import ContractError

PREMISE = (
    "ADC-SID takes the length of a behaviour vector for the item's frequency: Spearman {spearman}, Pearson {pearson} "
    "over {items} items"
)


@dataclass(frozen=True)
class BehaviorCommand:
    """SASRec item vectors and item pairs, from the train split alone, beside the content vectors."""

    data: tyro.conf.Positional[Path]
    """Data folder with log/ and items.parquet."""
    sasrec: Annotated[SasRecSettings, tyro.conf.arg(name="")] = field(default_factory=SasRecSettings)
    pairs: Annotated[PairSettings, tyro.conf.arg(name="")] = field(default_factory=PairSettings)
    check: bool = True
    """Also train without everybody's last event, and report how well these are predicted."""
    earliest_share: float = 1.0
    """Learn from this share of the train split's positives, the earliest. Semantic ids made of behaviour tell a ranker
    about the very rows that it trains on, and less about later ones; rows after the share are free of that."""

    def run(self) -> None:
        add_behavior(self.data, self.sasrec, self.pairs, self.check, self.earliest_share)


def add_behavior(
    data: Path, sasrec: SasRecSettings, pairs: PairSettings, check: bool = True, earliest_share: float = 1.0
) -> None:
    """Writes everything; each file appears whole, and only when all of them are ready.

    earliest_share: of the train split's positives, in time; the others are not looked at.
    Raises ContractError, before any training, when settings, log or items.parquet make no sense, or a file would be
    replaced that this command did not write.
    """
    sasrec.check()
    pairs.check()
    _check_files(data)
    sequences = read_sequences(data, earliest_share)
    row_M, rows = _rows_of(data / schema.ITEMS, sequences)
    rates = check_next_item(sequences, sasrec) if check else None
    facts = {
        "source": "SASRec trained on the rows with label 1 of the train split, sampled softmax, no L2 normalisation",
        "settings": asdict(sasrec),
        "earliest_share": earliest_share,
        "events": len(sequences.items_E),
        "users": sequences.users,
        "next_item": rates and asdict(rates),
    }
    model, losses = train_sasrec(sequences, sasrec, "SASRec")
    vectors_MD = model.items.weight[: model.start].detach().numpy()
    frequency_M = sequences.frequencies()
    premise = norm_and_frequency(vectors_MD, frequency_M)
    # The report comes first: it marks the files beside it as ours, should the process be killed between two of them.
    with _all_at_once(data, REPORT, schema.PAIRS, PICTURE) as (report_file, pairs_file, picture_file):
        written = write_pairs(pairs_file, item_pairs(sequences, pairs, sasrec.seed), sequences.item_ids_M)
        facts |= {"loss": losses, "norm_and_frequency": premise, "pairs": {**asdict(pairs), "rows": written}}
        report_file.write_text(json.dumps(facts, indent=1) + "\n")
        draw_norms(picture_file, vectors_MD, frequency_M, _title(data, sasrec, premise))
        said = _write_column(data / schema.ITEMS, vectors_MD, row_M, rows)
    print(said)
    print(f"{data / schema.PAIRS}: {written} pairs")
    print(_hit_rates(rates))
    print(PREMISE.format(**_rounded(premise)))


def _check_files(data: Path) -> None:
    there = [data / name for name in (schema.PAIRS, REPORT, PICTURE) if (data / name).exists()]
    if there and not is_behavior_report(data / REPORT):
        expected = f"no such file yet, or one that data_prep.behavior wrote together with {REPORT}"
        raise ContractError(there[0], expected, "another file; move it away")


def _rows_of(items: Path, sequences: Sequences) -> tuple[np.ndarray, int]:
    """Row of every train item among the rows of items.parquet, and how many rows there are."""
    if not items.is_file():
        raise ContractError(items, "an items.parquet, as data_prep writes it", "no such file")
    try:
        ids_N = pq.read_table(items, columns=[schema.ITEM_ID])[schema.ITEM_ID].to_numpy()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ContractError(items, f"a readable parquet file with a column {schema.ITEM_ID}", error) from None
    missing = np.setdiff1d(sequences.item_ids_M, ids_N)
    if len(missing):
        got = f"none for {len(missing)} of them, item {missing[0]} first"
        raise ContractError(f"{items}, column {schema.ITEM_ID}", "a row for every item of the train split", got)
    if not np.array_equal(np.sort(ids_N), np.arange(1, len(ids_N) + 1)):
        expected = f"every id from 1 to the number of rows {len(ids_N)} once, as data_prep writes them"
        raise ContractError(f"{items}, column {schema.ITEM_ID}", expected, f"ids from {ids_N.min()} to {ids_N.max()}")
    return sequences.item_ids_M - 1, len(ids_N)


def _write_column(items: Path, vectors_MD: np.ndarray, row_M: np.ndarray, rows: int) -> str:
    with tempfile.TemporaryDirectory(prefix="sidrec-behavior-") as scratch:
        file = Path(scratch) / f"{schema.BEHAVIOR}.npy"
        vectors_ND = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(rows, vectors_MD.shape[1]))
        vectors_ND[row_M] = vectors_MD
        vectors_ND.flush()
        return add_vectors(items, str(file), schema.BEHAVIOR).replace(str(file), "SASRec")


@contextmanager
def _all_at_once(folder: Path, *names: str) -> Iterator[tuple[Path, ...]]:
    """Paths to write to, which become FOLDER's files of these names together at the end, or vanish."""
    partial = tuple(folder / f"{name}.partial" for name in names)
    try:
        yield partial
        for file, name in zip(partial, names, strict=True):
            file.replace(folder / name)
    finally:
        for file in partial:
            file.unlink(missing_ok=True)


def _rounded(premise: dict[str, object]) -> dict[str, object]:
    return {key: f"{value:.3f}" if isinstance(value, float) else value for key, value in premise.items()}


def _title(data: Path, sasrec: SasRecSettings, premise: dict[str, object]) -> str:
    short = _rounded(premise)
    how = f"width {sasrec.width}, {sasrec.epochs} epochs, seed {sasrec.seed}"
    return f"{data.resolve().name}: SASRec, {how}\nSpearman {short['spearman']}, Pearson {short['pearson']}"


def _hit_rates(rates: HitRates | None) -> str:
    if rates is None:
        return "next item: not checked"
    found = f"hit rate at 10 {rates.sasrec:.4f}, popularity {rates.popularity:.4f}"
    return f"next item, last train event held out, {rates.users} users: {found}"


if __name__ == "__main__":
    run(BehaviorCommand, "data_prep.behavior")
