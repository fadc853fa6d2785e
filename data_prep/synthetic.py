"""A synthetic world whose best possible AUC is known: `python -m data_prep.synthetic OUT`.

Items lie in a three-level hierarchy of clusters; users like items near their history. A row is an exposure of an item
to a user. Its label is drawn with the probability

    p = sigmoid(bias + sum_l affinity_l * m_l + popularity * log1p(earlier exposures of the item) + charm_item)

m_l is the share of the user's history (latest positives before the row) in the item's cluster of level l, 0 for an
empty history. charm_item has standard deviation `charm` (0: none). Half of its variance is shared by the item's
second-level cluster, so a SID can learn it; the other half is the item's own, so only a HID can. Users' interests drift
and steer only which items are shown.

p depends on nothing hidden, so the AUC of p is the best that a model can reach, but for luck. Without charm, a model
that knows the clusters and the history can reach it. The log's column `bayes_probability` holds p.

Shapes: A rows of one tick, H history length, I items, N rows of a batch, S slices.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

from sidrec import schema
from sidrec.command_line import metavar
from sidrec.errors import ContractError
from sidrec.schema import Manifest

from .build import LogSettings, build, summary
from .command import refuse_flags, run
from .events import CATALOG_TEXT, CATALOG_TITLE, ITEM, LABEL, TIMESTAMP, USER, EventColumns, IdMap, Items
from .ordered_events import SECONDS_PER_DAY
from .source_files import open_stream

LEVELS = 3
TICKS = 1000  # distinct timestamps; a user has at most one row at each
FIRST_SECOND = 1_704_067_200  # 2024-01-01
LEVEL_SCALE = 0.6  # length of a level's offset, relative to the level above
BLOCK_TICKS = 50
CAT_NOISE_VALUES = 1000
BAYES_PROBABILITY = "bayes_probability"
HEAD_SHARE, TAIL_SHARE = 0.1, 0.5
BINS = 100_000  # probabilities are compared to five digits, so that memory does not grow with the log


LARGEST = 10**9  # rows, users and items that anybody would draw one by one
SHARES = ("late_items", "fresh_share", "interest_share", "drift")


@dataclass(frozen=True)
class WorldSettings:
    """Size of the world, and what its users like."""

    rows: int = 150_000
    """Exposures."""
    users: int = 2_000
    """Users; at least a thousandth of the rows."""
    items: int = 3_000
    """Items."""
    days: int = 120
    """Days that the log covers."""
    branching: int = 8
    """Clusters of a level within one of the level above. They share their offsets, so residual codes recover them."""
    width: int = 64
    """Width of the items' content vectors."""
    vector_noise: float = 0.15
    """Length of the noise on a content vector, relative to the offset of the first level."""
    zipf: float = 1.0
    """Exponent of the items' popularity."""
    late_items: float = 0.5
    """Share of items that appear while the log runs, at a constant pace."""
    fresh_share: float = 0.15
    """Share of exposures that go to items launched in the last tenth of the log."""
    interest_share: float = 0.5
    """Share of exposures that follow the user's interests."""
    interests: int = 2
    """Second-level clusters that a user is interested in at a time."""
    drift: float = 0.01
    """Chance per exposure that one of them is replaced."""
    bias: float = -2.2
    """Log odds of a positive without any affinity."""
    affinity: tuple[float, float, float] = (3.0, 2.0, 1.0)
    """Log odds per share of the history in the item's cluster, level by level."""
    popularity: float = 0.1
    """Log odds per log1p of the item's exposures so far."""
    charm: float = 0.0
    """Standard deviation of an item's own log odds; half of the variance is shared by its cluster."""
    int_noise: int = 3
    """Dense columns without meaning."""
    cat_noise: int = 2
    """Categorical columns without meaning."""

    def check(self) -> None:
        """Raises ContractError naming the flag whose value makes no sense."""
        shares = {f"--{name.replace('_', '-')}": getattr(self, name) for name in SHARES}
        levels = {f"--affinity, level {level}": weight for level, weight in enumerate(self.affinity, start=1)}
        numbers = {"--bias": self.bias, "--popularity": self.popularity, **levels}
        refuse_flags(
            {
                "--rows": (self.rows <= LARGEST, f"at most {LARGEST:,} rows", self.rows),
                "--users": (self.users <= LARGEST, f"at most {LARGEST:,} users", self.users),
                "--items": (self.items <= LARGEST, f"at most {LARGEST:,} items", self.items),
                "--days": (1 <= self.days <= 36_500, "1 to 36,500 days", self.days),
                "--branching": (1 <= self.branching <= 1000, "1 to 1,000 clusters", self.branching),
                "--width": (self.width <= 100_000, "a width of at most 100,000", self.width),
                "--vector-noise": (0 <= self.vector_noise < 1e6, "a length from 0 to 1e6", self.vector_noise),
                "--zipf": (0 <= self.zipf <= 100, "an exponent from 0 to 100", self.zipf),
                "--interests": (1 <= self.interests <= 1000, "1 to 1,000 clusters", self.interests),
                "--charm": (0 <= self.charm < 1e3, "a deviation from 0 to 1,000", self.charm),
                "--int-noise": (0 <= self.int_noise <= 1000, "0 to 1,000 columns", self.int_noise),
                "--cat-noise": (0 <= self.cat_noise <= 1000, "0 to 1,000 columns", self.cat_noise),
                **{flag: (0 <= share <= 1, "a share from 0 to 1", share) for flag, share in shares.items()},
                **{flag: (abs(odds) < 1e3, "log odds from -1,000 to 1,000", odds) for flag, odds in numbers.items()},
            }
        )
        if self.rows < TICKS:
            raise ContractError("--rows", f"at least {TICKS}", self.rows)
        if self.users * TICKS < self.rows:
            raise ContractError("--users", f"at least {-(-self.rows // TICKS)} for {self.rows} rows", self.users)
        if self.width < LEVELS * self.branching:
            raise ContractError("--width", f"at least {LEVELS} * branching = {LEVELS * self.branching}", self.width)
        if self.items < 10 * self.branching:
            raise ContractError("--items", f"at least 10 * branching = {10 * self.branching}", self.items)


@dataclass(frozen=True)
class SyntheticCommand:
    """Writes log/ and items.parquet of a synthetic world whose best possible AUC is known."""

    out: tyro.conf.Positional[Annotated[Path, metavar("OUT")]]
    """Data folder to write."""
    world: Annotated[WorldSettings, tyro.conf.arg(name="")] = field(default_factory=WorldSettings)
    log: Annotated[LogSettings, tyro.conf.arg(name="")] = field(default_factory=lambda: LogSettings(history=20))

    def run(self) -> None:
        self.world.check()
        source = SyntheticLog(self.world, self.log.history, self.log.seed)
        work = build(source, self.out, self.log, implicit=False)
        log = work.data / schema.LOG
        manifest = schema.load_manifest(log)
        best = bayes_auc(work.data, manifest)
        schema.save_manifest(replace(manifest, protocol={**manifest.protocol, "bayes": best}), log)
        work.publish()
        print(summary(self.out))
        slices = ", ".join(f"{name} {of['auc']:.4f}" for name, of in best.items() if of["auc"] is not None)
        print(f"  best possible AUC on the test split: {slices}")


@dataclass(frozen=True)
class SyntheticLog:
    """The exposures of a world as events, with dense and categorical columns of noise."""

    world: WorldSettings
    history: int
    seed: int
    files: tuple[Path, ...] = field(default=(), init=False)

    @property
    def name(self) -> str:
        return "synthetic world"

    @property
    def labels(self) -> str:
        return (
            "drawn with a known probability that depends on the item's clusters, the stored history and "
            f"stat_exposures alone; every exposure is a row. The column {BAYES_PROBABILITY} holds the probability:"
            " no model may read it"
        )

    @property
    def event_columns(self) -> EventColumns:
        return EventColumns(
            dense=tuple(f"int_noise_{number}" for number in range(1, self.world.int_noise + 1)),
            categorical=tuple(f"cat_noise_{number}" for number in range(1, self.world.cat_noise + 1)),
            extra=(BAYES_PROBABILITY,),
        )

    def catalog(self) -> list[str]:
        return [str(item) for item in range(1, self.world.items + 1)]

    def events(self) -> Iterator[pa.Table]:
        own, noise = self.event_columns, np.random.default_rng([self.seed, 1])
        block = []
        for tick in World(self.world, self.history, self.seed).ticks():
            rows = len(tick.user_A)
            columns: dict[str, object] = {
                USER: pc.cast(pa.array(tick.user_A), pa.string()),
                ITEM: pc.cast(pa.array(tick.item_A), pa.string()),
                TIMESTAMP: np.full(rows, tick.timestamp),
                LABEL: tick.label_A.astype(np.float32),
                BAYES_PROBABILITY: tick.probability_A.astype(np.float32),
            }
            columns |= {name: np.log1p(noise.pareto(1.5, rows)).astype(np.float32) for name in own.dense}
            columns |= {name: _noise_category(noise, rows) for name in own.categorical}
            block.append(pa.table(columns))
            if len(block) == BLOCK_TICKS:
                yield pa.concat_tables(block)
                block = []
        if block:
            yield pa.concat_tables(block)

    def items(self, ids: IdMap) -> Items:
        world = World(self.world, self.history, self.seed)
        names = [f"item {source_id}" for source_id in ids.source_ids()]
        columns: dict[str, object] = {"source_id": ids.source_ids(), CATALOG_TITLE: names, CATALOG_TEXT: names}
        row_I = ids.ids_of(pa.chunked_array([self.catalog()])) - 1
        listed = np.zeros(len(ids), dtype=bool)
        listed[row_I] = True
        vectors = np.zeros((len(ids), self.world.width), np.float32)
        vectors[row_I] = world.vectors()
        for level in range(LEVELS):
            clusters = np.zeros(len(ids), np.int64)
            clusters[row_I] = world.clusters_IL[:, level]
            columns[f"cluster_{level + 1}"] = clusters
        return Items(pa.table(columns), {}, {"text": vectors}, {"items": len(ids)}, listed)


def _noise_category(random: np.random.Generator, rows: int) -> pa.Array:
    return pc.cast(pa.array(np.minimum(random.zipf(1.3, rows), CAT_NOISE_VALUES)), pa.string())


# The world: what is shown to whom, and whether they like it.


@dataclass(frozen=True)
class Tick:
    """Rows with one timestamp; a user has at most one of them. Ids start at 1."""

    timestamp: int
    user_A: np.ndarray
    item_A: np.ndarray
    probability_A: np.ndarray
    label_A: np.ndarray


class World:
    """Items and users. Equal settings, history lengths and seeds give equal items and ticks."""

    def __init__(self, settings: WorldSettings, history: int, seed: int) -> None:
        settings.check()
        self._settings, self._history = settings, history
        item_seed, self._vector_seed, self._tick_seed, charm_seed = np.random.SeedSequence(seed).spawn(4)
        random = np.random.default_rng(item_seed)
        self.codes_IL = random.integers(settings.branching, size=(settings.items, LEVELS))
        self.clusters_IL = np.cumsum(self.codes_IL * settings.branching ** np.arange(LEVELS), axis=1)
        self._weight_I = random.permutation(np.arange(1, settings.items + 1) ** -settings.zipf)
        charm = np.random.default_rng(charm_seed)
        of_cluster_I = charm.normal(size=settings.branching**2)[self.clusters_IL[:, 1]]
        self._charm_I = settings.charm * (of_cluster_I + charm.normal(size=settings.items)) / 2**0.5
        late = int(settings.items * settings.late_items)
        # Items are numbered in order of launch (a share of the log's length), so the launched items are a prefix.
        self._launch_I = np.concatenate([np.zeros(settings.items - late), (np.arange(late) + 1) / (late + 1)])

    def vectors(self) -> np.ndarray:
        """float32 [I, width]: an offset per level and code, orthogonal to all others, plus noise."""
        random, settings = np.random.default_rng(self._vector_seed), self._settings
        basis, _ = np.linalg.qr(random.normal(size=(settings.width, settings.width)))
        vectors = random.normal(size=(settings.items, settings.width)) * settings.vector_noise / settings.width**0.5
        for level in range(LEVELS):
            vectors += LEVEL_SCALE**level * basis[level * settings.branching + self.codes_IL[:, level]]
        return vectors.astype(np.float32)

    def ticks(self) -> Iterator[Tick]:
        """All rows, tick by tick in time order. Memory: some numbers per user and per item."""
        settings = self._settings
        random = np.random.default_rng(self._tick_seed)
        interests = random.integers(settings.branching**2, size=(settings.users, settings.interests))
        histories = np.full((settings.users, self._history), -1)  # newest first
        exposures_I = np.zeros(settings.items, dtype=np.int64)
        bounds = np.linspace(0, settings.rows, TICKS + 1).astype(np.int64)
        for tick, rows in enumerate(np.diff(bounds)):
            user_A = np.sort(random.choice(settings.users, size=rows, replace=False))
            self._drift(random, interests, user_A)
            item_A = self._show(random, interests[user_A], tick / TICKS)
            probability_A = self._probability(item_A, histories[user_A], exposures_I[item_A])
            label_A = random.random(len(user_A)) < probability_A
            liking = user_A[label_A]
            histories[liking, 1:] = histories[liking, :-1]
            histories[liking, 0] = item_A[label_A]
            exposures_I += np.bincount(item_A, minlength=settings.items)
            timestamp = FIRST_SECOND + tick * settings.days * SECONDS_PER_DAY // TICKS
            yield Tick(timestamp, user_A + 1, item_A + 1, probability_A, label_A)

    def _drift(self, random: np.random.Generator, interests: np.ndarray, user_A: np.ndarray) -> None:
        moved = user_A[random.random(len(user_A)) < self._settings.drift]
        place = random.integers(self._settings.interests, size=len(moved))
        interests[moved, place] = random.integers(self._settings.branching**2, size=len(moved))

    def _show(self, random: np.random.Generator, interests_AN: np.ndarray, now: float) -> np.ndarray:
        """An item for each row, drawn from an interest's cluster, from the latest launches, or by popularity."""
        settings = self._settings
        live = int(np.searchsorted(self._launch_I, now, side="right"))
        fresh_from = int(np.searchsorted(self._launch_I, now - 0.1)) if now > 0.1 else 0
        rows = len(interests_AN)
        item_A = _draw(random, np.cumsum(self._weight_I[:live]), np.zeros(rows), np.ones(rows))
        kind_A = random.random(rows)
        fresh = kind_A < settings.fresh_share
        item_A[fresh] = random.integers(min(fresh_from, live - 1), live, size=int(fresh.sum()))
        guided = ~fresh & (kind_A < settings.fresh_share + settings.interest_share)
        wanted = interests_AN[np.arange(rows), random.integers(settings.interests, size=rows)]
        item_A[guided] = self._of_cluster(random, wanted[guided], live, item_A[guided])
        return item_A

    def _of_cluster(
        self, random: np.random.Generator, wanted_A: np.ndarray, live: int, otherwise_A: np.ndarray
    ) -> np.ndarray:
        """An item of each wanted second-level cluster, by popularity; `otherwise` where none of it is launched."""
        cluster_I = self.clusters_IL[:live, 1]
        by_cluster = np.argsort(cluster_I, kind="stable")
        mass = np.concatenate([[0.0], np.cumsum(self._weight_I[:live][by_cluster])])
        edges = np.searchsorted(cluster_I[by_cluster], np.arange(self._settings.branching**2 + 1))
        low, high = edges[wanted_A], edges[wanted_A + 1]
        place = _draw(random, mass[1:], mass[low] / mass[-1], mass[high] / mass[-1])
        return np.where(
            low < high, by_cluster[np.clip(place, low, np.maximum(high - 1, low).clip(max=live - 1))], otherwise_A
        )

    def _probability(self, item_A: np.ndarray, history_AH: np.ndarray, exposures_A: np.ndarray) -> np.ndarray:
        settings, there_AH = self._settings, history_AH >= 0
        logit_A = settings.bias + settings.popularity * np.log1p(exposures_A) + self._charm_I[item_A]
        for level, weight in enumerate(settings.affinity):
            cluster_I = self.clusters_IL[:, level]
            same_AH = (cluster_I[history_AH] == cluster_I[item_A][:, None]) & there_AH
            logit_A += weight * same_AH.sum(axis=1) / np.maximum(there_AH.sum(axis=1), 1)
        return np.asarray(1 / (1 + np.exp(-logit_A)))


def _draw(random: np.random.Generator, mass: np.ndarray, low_A: np.ndarray, high_A: np.ndarray) -> np.ndarray:
    """Indices drawn in proportion to mass, between the shares `low` and `high` of the total. mass: cumulative."""
    point_A = (low_A + random.random(len(low_A)) * (high_A - low_A)) * mass[-1]
    return np.minimum(np.searchsorted(mass, point_A, side="right"), len(mass) - 1)


# The best possible AUC.


def bayes_auc(data: Path, manifest: Manifest) -> dict[str, dict[str, float | None]]:
    """AUC of the true probabilities, and number of rows, by slice of the test split.

    Slices of items by train impressions: head, the first 10%; tail, the last half and the cold ones; torso, between;
    cold, without any. AUC is None where all labels are equal. The rows are those on which a model is evaluated.
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
    """Share of (positive, negative) pairs in the right order; ties count half. Counts are per bin, in rising order."""
    pairs = int(positives.sum()) * int(negatives.sum())
    if not pairs:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)


if __name__ == "__main__":
    run(SyntheticCommand, "data_prep.synthetic", "demo/world", "data/large --rows 2000000 --users 20000 --items 50000")
