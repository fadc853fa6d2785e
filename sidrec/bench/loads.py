"""How a subject's batches read its tables: bags, ids, and how often each row.

Shapes: R rows of a table.
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
from torch import distributed as dist
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.bench.subject import Subject, on_meta
from sidrec.parallel.process_group import Ranks
from sidrec.plans.popularity import CountedRows
from sidrec.plans.workload import TableLoad, Workload


def workload_of(subject: Subject, ranks: Ranks) -> Workload:
    """The subject as a plan's cost model sees it. Bags and ids are those of all ranks, frequencies this rank's."""
    everyone: list[dict[str, tuple[float, float]]] = [{}] * ranks.world
    dist.all_gather_object(everyone, _bags_and_ids(subject.batches), group=ranks.control)
    means = {feature: np.mean([rank[feature] for rank in everyone], axis=0) for feature in everyone[0]}
    workload = Workload(subject.name, on_meta(subject), {}, subject.rows_per_rank)
    return replace(workload, loads={name: _load(table, means, subject) for name, table in workload.tables.items()})


def _load(table: EmbeddingBagConfig, means: dict[str, np.ndarray], subject: Subject) -> TableLoad:
    """means: feature -> mean bags and ids of a rank's batch."""
    features = table.feature_names
    bags = round(means[features[0]][0])
    ids_per_bag = tuple(float(means[feature][1]) / max(1, bags) for feature in features)
    return TableLoad(bags, ids_per_bag, _popularity(table, subject.batches))


def _popularity(table: EmbeddingBagConfig, batches: list[Any]) -> CountedRows | None:
    """None where there are no ids, or ids that are no rows: a managed table finds the row itself."""
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
