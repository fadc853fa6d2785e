"""The known-answer world: its probabilities follow its rule, and a model that knows the rule reaches the best AUC."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from data_prep.build import LogSettings
from data_prep.synthetic import BAYES_PROBABILITY, LEVELS, SyntheticCommand, WorldSettings, auc_of_counts
from sidrec import schema
from tests.data_prep.event_lists import read_rows

SMALL = WorldSettings(rows=24_000, users=500, items=600, branching=5, width=16)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "out"
    SyntheticCommand(out, SMALL, LogSettings(history=20, partition_rows=5_000)).run()
    return out


@pytest.fixture(scope="module")
def rows(world: Path) -> list[dict]:
    return read_rows(world)


def clusters(world: Path) -> np.ndarray:
    """int64 [items, levels]: the true ones."""
    items = pq.read_table(world / "items.parquet")
    return np.stack([items[f"cluster_{level}"].to_numpy() for level in range(1, LEVELS + 1)], axis=1)


def recovered_codes(world: Path, branching: int) -> np.ndarray:
    """int64 [items, levels]: prefixes of residual k-means codes of the content vectors."""
    rest = np.array(pq.read_table(world / "items.parquet")["text"].to_pylist())
    prefix, found = np.zeros(len(rest), dtype=np.int64), []
    for _ in range(LEVELS):
        level = KMeans(branching, n_init=3, random_state=0).fit(rest)
        rest = rest - level.cluster_centers_[level.labels_]
        prefix = prefix * branching + level.labels_
        found.append(prefix)
    return np.stack(found, axis=1)


def matches(rows: list[dict], codes: np.ndarray) -> np.ndarray:
    """Share of the history in the target's cluster per level, and log1p of the item's exposures: float [rows, 4]."""
    features = np.zeros((len(rows), LEVELS + 1))
    for place, row in enumerate(rows):
        if row["history"]:
            same = codes[np.array(row["history"]) - 1] == codes[row["item_id"] - 1]
            features[place, :LEVELS] = same.mean(axis=0)
        features[place, LEVELS] = np.log1p(row["stat_exposures"])
    return features


def test_probability_follows_from_the_row(world: Path, rows: list[dict]) -> None:
    logit = SMALL.bias + matches(rows, clusters(world)) @ np.array([*SMALL.affinity, SMALL.popularity])
    stored = np.array([row[BAYES_PROBABILITY] for row in rows])
    assert stored == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)


def test_labels_are_drawn_from_the_probability(rows: list[dict]) -> None:
    """Calibration by decile: the mean label lies within four standard errors of the mean probability."""
    order = sorted(rows, key=lambda row: row[BAYES_PROBABILITY])
    for decile in np.array_split(np.arange(len(order)), 10):
        p = np.array([order[place][BAYES_PROBABILITY] for place in decile])
        y = np.array([order[place]["label"] for place in decile])
        assert abs(y.mean() - p.mean()) < 4 * np.sqrt((p * (1 - p)).sum()) / len(p)


def test_codes_and_history_reach_the_bayes_auc(world: Path, rows: list[dict]) -> None:
    codes = recovered_codes(world, SMALL.branching)
    assert adjusted_rand_score(clusters(world)[:, 2], codes[:, 2]) > 0.95
    train, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    model = LogisticRegression(C=100).fit(matches(train, codes), [row["label"] for row in train])
    auc = roc_auc_score([row["label"] for row in test], model.decision_function(matches(test, codes)))
    best = schema.load_manifest(world / "log").protocol["bayes"]["all"]["auc"]  # type: ignore[index]
    assert best > 0.7
    assert auc - 0.5 >= 0.97 * (best - 0.5)


def test_bayes_auc_in_the_manifest(world: Path, rows: list[dict]) -> None:
    bayes = schema.load_manifest(world / "log").protocol["bayes"]
    impressions = pq.read_table(world / "items.parquet")["train_impressions"].to_numpy()
    test = [row for row in rows if row["split"] == "test"]
    cold = [row for row in test if impressions[row["item_id"] - 1] == 0]
    assert len(cold) > 100
    for name, chosen in (("all", test), ("cold", cold)):
        expected = roc_auc_score([row["label"] for row in chosen], [row[BAYES_PROBABILITY] for row in chosen])
        assert bayes[name] == {"auc": pytest.approx(expected, abs=1e-5), "rows": len(chosen)}  # type: ignore[index]


def test_auc_of_counts() -> None:
    """Bins in ascending order hold negatives (1, 2, 0) and positives (0, 1, 1): (1 + 2/2 + 3) of 3 * 2 pairs."""
    assert auc_of_counts(np.array([1, 2, 0]), np.array([0, 1, 1])) == (1 + 2 / 2 + 3) / 6
    assert auc_of_counts(np.array([1]), np.array([0])) is None


def test_charm_is_one_number_per_item_and_half_its_cluster(tmp_path: Path) -> None:
    out = tmp_path / "world"
    settings = replace(SMALL, charm=1.0)
    SyntheticCommand(out, settings, LogSettings(history=5)).run()
    rows = read_rows(out)
    stored = np.array([row[BAYES_PROBABILITY] for row in rows], dtype=np.float64).clip(1e-6, 1 - 1e-6)
    codes = clusters(out)
    plain = settings.bias + matches(rows, codes) @ np.array([*settings.affinity, settings.popularity])
    charm_N, item_N = np.log(stored / (1 - stored)) - plain, np.array([row["item_id"] for row in rows])
    items = np.unique(item_N)
    of_item = [charm_N[item_N == item] for item in items]
    assert max(float(np.ptp(values)) for values in of_item) < 0.01  # probabilities are stored as float32
    charm_I = np.array([values.mean() for values in of_item])
    assert charm_I.std() == pytest.approx(1, rel=0.25)
    cluster_I = codes[items - 1, 1]
    within = np.concatenate([charm_I[cluster_I == c] - charm_I[cluster_I == c].mean() for c in np.unique(cluster_I)])
    assert within.std() == pytest.approx(1 / 2**0.5, rel=0.15)


def test_seed_decides(tmp_path: Path) -> None:
    tiny = WorldSettings(rows=1_000, users=50, items=100, branching=3, width=9)
    first, again, other = (tmp_path / name for name in "abc")
    for out, seed in ((first, 0), (again, 0), (other, 1)):
        SyntheticCommand(out, tiny, LogSettings(history=5, seed=seed)).run()
    assert read_rows(first) == read_rows(again)
    assert read_rows(first) != read_rows(other)
