"""Tables alone as a subject: a model around them, and batches drawn by the tables' own statistics.

Shapes: B rows of one rank, X dense columns.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.bench.subject import Subject
from sidrec.bench.tables_model import DENSE, TablesModel
from sidrec.config import ConfigError
from sidrec.config.tree import OptimizerConfig, ParallelConfig
from sidrec.parallel.process_group import Ranks
from sidrec.plans.tables_file import TablesFile

SEED = 0


def tables_subject(tables: TablesFile, batches: int, ranks: Ranks) -> Subject:
    """A subject with `batches` batches on every rank. Raises ConfigError where ranks do not divide a step's rows."""
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
    """The same tables at a `divisor`-th of their rows, at least one, for machines that the whole ones do not fit."""
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
            # A mean of 2.3 ids: every bag has 2, and three in ten have another.
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
