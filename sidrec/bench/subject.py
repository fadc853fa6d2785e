"""The subject of a bench: a model and its batches, from a recipe and its log or from a tables file.

Shapes: B rows of one rank, X dense columns, R rows of a table.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config import ConfigError, Recipe
from sidrec.config.recipe import AdagradTables, OptimizerConfig, ParallelConfig, RowwiseAdagradTables, TableOptimizer
from sidrec.data.dataset import Sizes
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks, gather_objects
from sidrec.plans.tables_file import DENSE, TablesFile, TablesModel
from sidrec.plans.workload import CountedRows, TableLoad, Workload
from sidrec.train.assembly import open_dataset, open_loader
from sidrec.train.stopping import synced_batches


@dataclass(frozen=True)
class Subject:
    """A model to shard, and this rank's batches.

    model: makes the module, with tables on `meta` and initialised dense layers, the same on every call and rank. Its
        forward takes a batch and returns (loss, (terms with the key `loss`, anything)).
    batches: equally many on every rank; in a step, all ranks have equally many bags of a collection.
    optimizer: one that learns the same under every plan. pipeline: as in `parallel.pipeline`.
    facts: about the batches, for the result.
    """

    name: str
    model: Callable[[], nn.Module]
    batches: list[Any]
    rows_per_rank: int
    optimizer: OptimizerConfig
    pipeline: str
    seed: int
    facts: dict[str, Any]

    def endless(self) -> Iterator[Any]:
        """Cycles through the batches, each as the loader would yield it."""
        while True:
            yield from map(without_cached_fields, self.batches)


def without_cached_fields(batch: Any) -> Any:
    """The batch with new KeyedJaggedTensors, which have not computed offsets and lengths per key yet."""
    return replace(
        batch,
        **{
            field.name: KeyedJaggedTensor(keys=value.keys(), values=value.values(), lengths=value.lengths())
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), KeyedJaggedTensor)
        },
    )


def same_under_every_plan(optimizer: OptimizerConfig) -> tuple[OptimizerConfig, str | None]:
    """The optimizer with element-wise instead of row-wise Adagrad, and a note if that changed it.

    Under row-wise Adagrad each column shard has its own state per row, so that plans would learn differently.
    """
    if not any(isinstance(tables, RowwiseAdagradTables) for tables in (optimizer.tables, optimizer.hid)):
        return optimizer, None
    hid = None if optimizer.hid is None else _element_wise(optimizer.hid)
    changed = replace(optimizer, tables=_element_wise(optimizer.tables), hid=hid)
    return changed, "element-wise Adagrad instead of row-wise, which would learn differently on column shards"


def _element_wise(optimizer: TableOptimizer) -> TableOptimizer:
    if isinstance(optimizer, RowwiseAdagradTables):
        return AdagradTables(lr=optimizer.lr, eps=optimizer.eps)
    return optimizer


def meta_model(subject: Subject) -> nn.Module:
    """The model on `meta`: nothing is allocated."""
    with torch.device("meta"):
        return subject.model()


# A recipe: its ranker, on batches of its own log.


def recipe_subject(recipe: Recipe, batches: int, ranks: Ranks) -> Subject:
    """The recipe's ranker and its first `batches` train batches, or all of them if the log has fewer.

    Collective. Raises ConfigError or ContractError on all ranks, as training does.
    """
    data = open_dataset(recipe, ranks)
    loader = open_loader(recipe, data, recipe.data.train_on, shuffle=True, ranks=ranks)
    count = min(batches, loader.steps)
    packed = synced_batches(islice(loader.packed_batches(0), count), count, ranks)
    read = [batch.to(torch.device("cpu")) for batch in packed]
    loader.close()
    optimizer, change = same_under_every_plan(recipe.optimizer)
    facts = {"batches": f"{count} per rank of {recipe.data.path}, split train"}
    return Subject(
        name=recipe.name,
        model=partial(_ranker_model, recipe, data.sizes),
        batches=read,
        rows_per_rank=max(1, recipe.data.batch_size // ranks.world),
        optimizer=optimizer,
        pipeline=recipe.parallel.pipeline,
        seed=recipe.seed,
        facts=facts | ({"optimizer": change} if change else {}),
    )


def _ranker_model(recipe: Recipe, sizes: Sizes) -> nn.Module:
    torch.manual_seed(recipe.seed)
    return Ranker(recipe.model, sizes)


# A tables file: a model around its tables, and batches drawn by its statistics.

SEED = 0


def tables_subject(tables: TablesFile, batches: int, ranks: Ranks) -> Subject:
    """The tables and `batches` random batches per rank. Raises ConfigError if ranks do not divide a step's rows."""
    if tables.rows_per_step % ranks.world:
        expected = f"a multiple of the number of ranks = {ranks.world}"
        raise ConfigError(f"{tables.name}, rows_per_step: expected {expected}, got {tables.rows_per_step}")
    rows = tables.rows_per_step // ranks.world
    return Subject(
        name=tables.name,
        model=partial(_model, tables),
        batches=[_batch(tables, rows, ranks.rank, number) for number in range(batches)],
        rows_per_rank=rows,
        optimizer=OptimizerConfig(),
        pipeline=ParallelConfig().pipeline,
        seed=SEED,
        facts={"batches": f"{batches} synthetic ones per rank, each table's ids drawn by its own Zipf law"},
    )


def with_fewer_rows(tables: TablesFile, divisor: int) -> TablesFile:
    """The tables with 1/divisor of their rows, at least one, for machines that are too small for all."""
    smaller = tuple(replace(table, rows=max(1, table.rows // divisor)) for table in tables.tables)
    return replace(tables, tables=smaller)


def _model(tables: TablesFile) -> nn.Module:
    torch.manual_seed(SEED)
    return TablesModel(tables.collection())


def _batch(tables: TablesFile, rows: int, rank: int, number: int) -> Batch:
    random = np.random.default_rng([SEED, rank, number])
    keys, values, lengths = [], [], []
    for table in tables.tables:
        for feature in table.feature_names:
            # For a mean of 2.3 ids, every bag has 2 and 30% of the bags have a third.
            sizes_B = int(table.ids_per_bag) + (random.random(rows) < table.ids_per_bag % 1)
            keys.append(feature)
            lengths.append(sizes_B)
            values.append(table.law.draw(random, int(sizes_B.sum())))
    dense_BX = random.standard_normal((rows, DENSE), dtype=np.float32)
    labels_B = (random.random(rows) < 0.5).astype(np.float32)
    sparse = KeyedJaggedTensor(
        keys=keys, values=torch.from_numpy(np.concatenate(values)), lengths=torch.from_numpy(np.concatenate(lengths))
    )
    return Batch(torch.from_numpy(dense_BX), sparse, torch.from_numpy(labels_B))


# The workload of a subject, counted from its batches.


def workload_of(subject: Subject, ranks: Ranks) -> Workload:
    """The subject for cost models. Collective: bags and ids are means over all ranks; row counts are this rank's."""
    by_rank = gather_objects(ranks, _bags_and_ids(subject.batches))
    means = {feature: np.mean([rank[feature] for rank in by_rank], axis=0) for feature in by_rank[0]}
    workload = Workload(subject.name, meta_model(subject), {}, subject.rows_per_rank)
    return replace(workload, loads={name: _load(table, means, subject) for name, table in workload.tables.items()})


def _load(table: EmbeddingBagConfig, means: dict[str, np.ndarray], subject: Subject) -> TableLoad:
    """means: feature -> mean number of bags and ids in a rank's batch."""
    features = table.feature_names
    bags = round(means[features[0]][0])
    ids_per_bag = tuple(float(means[feature][1]) / max(1, bags) for feature in features)
    return TableLoad(bags, ids_per_bag, _popularity(table, subject.batches))


def _popularity(table: EmbeddingBagConfig, batches: list[Any]) -> CountedRows | None:
    """None without ids, or for a managed table, whose ids are not rows."""
    count_R = np.zeros(table.num_embeddings, dtype=np.int64)
    for features in _sparse(batches):
        for feature in set(table.feature_names) & set(features.keys()):
            ids = features[feature].values().numpy()
            if len(ids) and ids.max() >= len(count_R):
                return None
            count_R += np.bincount(ids, minlength=len(count_R))
    return CountedRows(count_R) if count_R.any() else None


def _bags_and_ids(batches: list[Any]) -> dict[str, tuple[float, float]]:
    """Feature -> mean number of bags and of ids in a batch."""
    counted: dict[str, tuple[float, float]] = {}
    for features in _sparse(batches):
        for feature, ids in zip(features.keys(), features.length_per_key(), strict=True):
            bags_before, ids_before = counted.get(feature, (0.0, 0.0))
            counted[feature] = (bags_before + features.stride() / len(batches), ids_before + ids / len(batches))
    return counted


def _sparse(batches: list[Any]) -> Iterator[KeyedJaggedTensor]:
    for batch in batches:
        values = (getattr(batch, field.name) for field in fields(batch))
        yield from (value for value in values if isinstance(value, KeyedJaggedTensor))
