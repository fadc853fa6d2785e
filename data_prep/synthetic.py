"""The known-answer world as a data folder: `python -m data_prep.synthetic OUT`. Its rules are in data_prep/world.py."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from data_prep.bayes import BAYES_PROBABILITY, bayes_auc
from data_prep.build import build
from data_prep.command import run
from data_prep.events import CATALOG_TEXT, CATALOG_TITLE, ITEM, LABEL, TIMESTAMP, USER, Items
from data_prep.id_map import IdMap
from data_prep.settings import LogSettings
from data_prep.world import LEVELS, World, WorldSettings
from sidrec import schema

BLOCK_TICKS = 50
CAT_NOISE_VALUES = 1000


@dataclass(frozen=True)
class SyntheticLog:
    """A world's exposures as events, with Criteo-style columns that mean nothing."""

    world: WorldSettings
    history: int
    seed: int
    files: tuple[Path, ...] = field(default=(), init=False)
    extra: tuple[str, ...] = field(default=(BAYES_PROBABILITY,), init=False)

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
    def dense(self) -> tuple[str, ...]:
        return tuple(f"int_noise_{number}" for number in range(1, self.world.int_noise + 1))

    @property
    def categorical(self) -> tuple[str, ...]:
        return tuple(f"cat_noise_{number}" for number in range(1, self.world.cat_noise + 1))

    def catalog(self) -> list[str]:
        return [str(item) for item in range(1, self.world.items + 1)]

    def events(self) -> Iterator[pa.Table]:
        noise = np.random.default_rng([self.seed, 1])
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
            columns |= {name: np.log1p(noise.pareto(1.5, rows)).astype(np.float32) for name in self.dense}
            columns |= {name: _noise_category(noise, rows) for name in self.categorical}
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
        columns |= {f"cluster_{level + 1}": world.clusters_IL[:, level] for level in range(LEVELS)}
        return Items(pa.table(columns), {}, {"text": world.vectors()}, {"items": len(ids)})


def _noise_category(random: np.random.Generator, rows: int) -> pa.Array:
    return pc.cast(pa.array(np.minimum(random.zipf(1.3, rows), CAT_NOISE_VALUES)), pa.string())


@dataclass(frozen=True)
class SyntheticCommand:
    """A known-answer world to log/ and items.parquet, with the best AUC that any model can reach."""

    out: tyro.conf.Positional[Path]
    """Data folder to write."""
    world: Annotated[WorldSettings, tyro.conf.arg(name="")] = field(default_factory=WorldSettings)
    log: Annotated[LogSettings, tyro.conf.arg(name="")] = field(default_factory=lambda: LogSettings(history=20))

    def run(self) -> None:
        source = SyntheticLog(self.world, self.log.history, self.log.seed)
        work = build(source, self.out, self.log, implicit=False)
        log = work.data / schema.LOG
        manifest = schema.load_manifest(log)
        facts = {**manifest.protocol, "bayes": bayes_auc(work.data, manifest)}
        schema.save_manifest(replace(manifest, protocol=facts), log)
        work.publish()
        print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    run(SyntheticCommand, "data_prep.synthetic")
