"""The AUC of the true probabilities on the test split: what no model can beat but by luck."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_prep.parquet_stream import open_stream
from sidrec import schema
from sidrec.schema import Manifest

BAYES_PROBABILITY = "bayes_probability"
HEAD_SHARE, TAIL_SHARE = 0.1, 0.5
BINS = 100_000  # probabilities are compared to five digits, so that memory does not grow with the log


def bayes_auc(data: Path, manifest: Manifest) -> dict[str, object]:
    """AUC and number of rows of the test split and of its rows on head, torso, tail and cold items.

    Items by train impressions: head the first 10%, tail the last half (with the cold ones), torso between, cold without
    any.
    AUC is None where only one label is there. It is the sample's: the same rows that a model is measured on.
    """
    slices_SI = item_slices(pq.read_table(data / schema.ITEMS, columns=[schema.TRAIN_IMPRESSIONS]))
    counts = {name: np.zeros((2, BINS + 1), dtype=np.int64) for name in slices_SI}
    columns = [schema.LABEL, schema.ITEM_ID, BAYES_PROBABILITY]
    for entry in manifest.files("test"):
        for batch in open_stream(data / schema.LOG / entry.path).iter_batches(columns=columns):
            label_N, item_N, probability_N = (batch[column].to_numpy() for column in columns)
            bin_N = np.round(probability_N * BINS).astype(np.int64)
            for name, wanted_I in slices_SI.items():
                chosen_N = wanted_I[item_N - 1]
                for label in (0, 1):
                    counts[name][label] += np.bincount(bin_N[chosen_N & (label_N == label)], minlength=BINS + 1)
    return {name: {"auc": auc_of_counts(*by_label), "rows": int(by_label.sum())} for name, by_label in counts.items()}


def item_slices(items: "pq.Table") -> dict[str, np.ndarray]:
    """Slice name -> bool per item (row 0 is item 1)."""
    impressions_I = items[schema.TRAIN_IMPRESSIONS].to_numpy()
    number = len(impressions_I)
    rank_I = np.empty(number, dtype=np.int64)
    rank_I[np.lexsort((np.arange(number), -impressions_I))] = np.arange(number)
    cold_I = impressions_I == 0
    tail_I = (rank_I >= number - round(TAIL_SHARE * number)) | cold_I
    head_I = (rank_I < round(HEAD_SHARE * number)) & ~tail_I
    everything = np.ones(number, dtype=bool)
    return {"all": everything, "head": head_I, "torso": ~head_I & ~tail_I, "tail": tail_I, "cold": cold_I}


def auc_of_counts(negatives: np.ndarray, positives: np.ndarray) -> float | None:
    """Share of (positive, negative) pairs in the right order, ties half, from counts per bin in ascending order."""
    pairs = int(positives.sum()) * int(negatives.sum())
    if not pairs:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)
