"""Behaviour vectors and item pairs from the train split: `python -m data_prep.behavior DATA`.

Trains SASRec on the train split's positives and writes its item vectors, not normalised, as the column `behavior` of
DATA/items.parquet; items without train positives get zeros. Writes pairs.parquet, behavior.json and behavior.png too.

Two checks tell whether the vectors are of use: how well SASRec predicts each user's last event, compared with
popularity, and whether the vectors' lengths follow the items' frequencies, which ADC-SID assumes.

Shapes: M items of the train split, N rows of items.parquet, D width, U users, B users of a chunk, T positions, G groups
of similar frequency.

The command's help must not import torch, hence the imports inside functions.
"""

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from sidrec import schema
from sidrec.command_line import metavar
from sidrec.errors import ContractError
from sidrec.io.files import json_text, replaced_file
from sidrec.io.output_lock import locked

from .command import PICTURE, REPORT, is_behavior_report, refuse_flags, run
from .item_pairs import PairSettings, Sequences, item_pairs, read_sequences, write_pairs
from .item_vectors import add_vectors

PREMISE = (
    "ADC-SID assumes that the length of a behaviour vector follows the item's frequency: Spearman {spearman}, "
    "Pearson {pearson} over {items} items"
)
TOP = 10
MOST_USERS = 10_000  # checked; a seeded sample if there are more
CHUNK = 128
GROUPS = 12


@dataclass(frozen=True)
class SasRecSettings:
    """The SASRec model and its training."""

    width: int = 64
    """Width of the behaviour vectors."""
    blocks: int = 2
    """Blocks of attention and point-wise network."""
    heads: int = 2
    """Attention heads; they divide the width."""
    length: int = 50
    """Events in a window. Longer sequences are cut into windows: every event is a target once per epoch."""
    dropout: float = 0.2
    """Dropout of inputs and blocks."""
    epochs: int = 20
    """Passes over all events."""
    lr: float = 2e-3
    """Learning rate of Adam at the start; it falls linearly to 0. There is no weight decay."""
    batch_events: int = 2048
    """Positions of a batch, padding included."""
    negatives: int = 512
    """Uniform negatives shared by a batch; with no more items than that, the softmax is exact."""
    seed: int = 0
    """Seed of everything random."""
    threads: int = 1
    """Threads of the training. Equal vectors need an equal seed and an equal number of threads."""

    def check(self) -> None:
        """Raises ContractError naming the flag whose value makes no sense."""
        least_one = ("width", "blocks", "heads", "length", "epochs", "batch_events", "negatives", "threads")
        rules = {name: (getattr(self, name) >= 1, "at least 1") for name in least_one}
        rules["heads"] = (self.heads >= 1 and self.width % self.heads == 0, f"a divisor of the width {self.width}")
        rules["dropout"] = (0 <= self.dropout < 1, "a share from 0 to below 1")
        rules["lr"] = (0 < self.lr < float("inf"), "a positive number")
        rules["batch_events"] = (self.batch_events >= self.length, f"at least a window's length {self.length}")
        rules["seed"] = (self.seed >= 0, "at least 0")
        refuse_flags({f"--{name.replace('_', '-')}": (*rule, getattr(self, name)) for name, rule in rules.items()})


@dataclass(frozen=True)
class BehaviorCommand:
    """Adds behaviour vectors (SASRec) to DATA/items.parquet and writes item pairs, from the train split alone."""

    data: tyro.conf.Positional[Annotated[Path, metavar("DATA")]]
    """Data folder with log/ and items.parquet."""
    sasrec: Annotated[SasRecSettings, tyro.conf.arg(name="")] = field(default_factory=SasRecSettings)
    pairs: Annotated[PairSettings, tyro.conf.arg(name="")] = field(default_factory=PairSettings)
    check: bool = True
    """Also train without each user's last event, and report how well these events are predicted."""
    earliest_share: float = 1.0
    """Learn from the earliest positives of the train split alone, this share of them. Semantic IDs from behaviour leak
    labels of the rows that they were learned from into a ranker's training; later rows are free of that."""

    def run(self) -> None:
        with locked(self.data):
            add_behavior(self.data, self.sasrec, self.pairs, self.check, self.earliest_share)


def add_behavior(
    data: Path, sasrec: SasRecSettings, pairs: PairSettings, check: bool = True, earliest_share: float = 1.0
) -> None:
    """Writes the column and the files. Each file appears whole, when all of them are ready.

    check: train another model for `check_next_item`. earliest_share: see `read_sequences`. Raises ContractError, before
    any training, for invalid settings, log or items.parquet, and for files in the way that this command did not write.
    """
    from .sasrec import train_sasrec

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
    # The files appear last to first, so the report is there first: it marks the others as ours after a kill.
    with (
        replaced_file(data / PICTURE, one_writer=True) as picture_file,
        replaced_file(data / schema.PAIRS, one_writer=True) as pairs_file,
        replaced_file(data / REPORT, one_writer=True) as report_file,
    ):
        written = write_pairs(pairs_file, item_pairs(sequences, pairs, sasrec.seed), sequences.item_ids_M)
        facts |= {"loss": losses, "norm_and_frequency": premise, "pairs": {**asdict(pairs), "rows": written}}
        report_file.write_text(json_text(facts), encoding="utf-8")
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
    """int64 [M]: row of each train item in items.parquet; and its number of rows N."""
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


def _rounded(premise: dict[str, object]) -> dict[str, object]:
    return {key: f"{value:.3f}" if isinstance(value, float) else value for key, value in premise.items()}


def _title(data: Path, sasrec: SasRecSettings, premise: dict[str, object]) -> str:
    short = _rounded(premise)
    how = f"width {sasrec.width}, {sasrec.epochs} epochs, seed {sasrec.seed}"
    return f"{data.resolve().name}: SASRec, {how}\nSpearman {short['spearman']}, Pearson {short['pearson']}"


# Check 1: hit rate at 10 on each user's last train event, held out.


@dataclass(frozen=True)
class HitRates:
    """Share of `users` whose held-out item is among the TOP of the items that are new to the user."""

    users: int
    sasrec: float
    popularity: float


def _hit_rates(rates: HitRates | None) -> str:
    if rates is None:
        return "next item: not checked"
    found = f"hit rate at 10 {rates.sasrec:.4f}, popularity {rates.popularity:.4f}"
    return f"next item, last train event held out, {rates.users} users: {found}"


def check_next_item(sequences: Sequences, settings: SasRecSettings) -> HitRates | None:
    """Trains a model without the users' last events, and predicts these.

    Popularity counts the remaining events. Users with one event, or whose last item is not new to them, are left out.
    None when no user is left.
    """
    from .sasrec import item_scores, train_sasrec

    known = sequences.without_last()
    users = _users_to_check(sequences, settings.seed)
    if not len(users):
        return None
    popularity_M = known.frequencies().astype(np.float32)
    model, _ = train_sasrec(known, settings, "SASRec without last events")
    hits = np.zeros(2)
    for chunk_B in np.array_split(users, -(-len(users) // CHUNK)):
        target_B = sequences.items_E[sequences.offsets[chunk_B + 1] - 1]
        had = [known.items_E[known.offsets[user] : known.offsets[user + 1]] for user in chunk_B]
        popularity_BM = np.repeat(popularity_M[None], len(chunk_B), axis=0)
        for place, scores_BM in enumerate((item_scores(model, had, settings.length), popularity_BM)):
            hits[place] += hits_of(scores_BM, target_B, had)
    sasrec, popularity = (hits / len(users)).tolist()
    return HitRates(len(users), sasrec, popularity)


def _users_to_check(sequences: Sequences, seed: int) -> np.ndarray:
    last_U = sequences.items_E[sequences.offsets[1:] - 1]
    repeats_E = sequences.items_E == np.repeat(last_U, sequences.lengths())
    once_U = np.add.reduceat(repeats_E, sequences.offsets[:-1]) == 1
    users = np.flatnonzero(once_U & (sequences.lengths() > 1))
    if len(users) <= MOST_USERS:
        return users
    return np.sort(np.random.default_rng(seed).choice(users, MOST_USERS, replace=False))


def hits_of(scores_BM: np.ndarray, target_B: np.ndarray, had: list[np.ndarray]) -> int:
    """Number of rows whose target is among the TOP items that are not in `had`. Ties: the lower item number wins."""
    own_B = scores_BM[np.arange(len(target_B)), target_B][:, None]
    ahead_BM = scores_BM > own_B
    ahead_BM |= (scores_BM == own_B) & (np.arange(scores_BM.shape[1]) < target_B[:, None])
    for row, items in zip(ahead_BM, had, strict=True):
        row[items] = False
    return int((ahead_BM.sum(axis=1) < TOP).sum())


# Check 2: do the lengths of behaviour vectors follow the items' frequencies?


def norm_and_frequency(vectors_MD: np.ndarray, frequency_M: np.ndarray) -> dict[str, object]:
    """Spearman and Pearson correlation of |vector| with the number of train positives (ADC-SID, arXiv 2510.25622v3).

    Over the items of the train split. A correlation is None where all norms or all frequencies are equal.
    """
    import pandas as pd

    norm_M = np.linalg.norm(vectors_MD, axis=1)
    ranks = (pd.Series(values).rank().to_numpy() for values in (norm_M, frequency_M))
    return {
        "items": len(norm_M),
        "spearman": _correlation(*ranks),
        "pearson": _correlation(norm_M, frequency_M),
        "norm_quartiles": np.quantile(norm_M, [0, 0.25, 0.5, 0.75, 1]).tolist(),
        "frequency_quartiles": np.quantile(frequency_M, [0, 0.25, 0.5, 0.75, 1]).tolist(),
    }


def _correlation(x_M: np.ndarray, y_M: np.ndarray) -> float | None:
    if np.ptp(x_M) == 0 or np.ptp(y_M) == 0:
        return None
    return float(np.corrcoef(x_M, y_M)[0, 1])


def median_norms(norm_M: np.ndarray, frequency_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean frequency and median norm [G] of at most GROUPS groups, with bounds evenly spaced in log frequency."""
    bounds = np.geomspace(frequency_M.min(), frequency_M.max() + 1, GROUPS + 1)
    group_M = np.searchsorted(bounds, frequency_M, side="right")
    groups = np.unique(group_M)
    frequency_G = [frequency_M[group_M == group].mean() for group in groups]
    return np.array(frequency_G), np.array([np.median(norm_M[group_M == group]) for group in groups])


def draw_norms(path: Path, vectors_MD: np.ndarray, frequency_M: np.ndarray, title: str) -> None:
    """Draws a PNG: norm against frequency (log axis), a point for each item, and the median by frequency."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    norm_M = np.linalg.norm(vectors_MD, axis=1)
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(frequency_M, norm_M, s=5, color="#56B4E9", alpha=0.4, linewidths=0, label="items", rasterized=True)
    axes.plot(*median_norms(norm_M, frequency_M), "o-", color="#0072B2", label="median of items of like frequency")
    axes.set_xscale("log")
    axes.set_xlabel("positives of the item in the train split")
    axes.set_ylabel("length of its behaviour vector")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.set_title(title, loc="left", fontsize=10)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=120)


if __name__ == "__main__":
    run(BehaviorCommand, "data_prep.behavior", "data/beauty", "data/beauty --epochs 50 --pairs co_occurrence")
