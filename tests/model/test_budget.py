from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from sidrec.config.model import ModelConfig
from sidrec.data.dataset import Sizes
from sidrec.model.ranker import Budget, parameter_budget
from tests.model.test_ranker import ROWS, ranker_for, tables_for

# dense layers: 2 int_* columns, 1 history length, 2 statistics = 5 inputs
BOTTOM = (5 * 64 + 64) + (64 * 8 + 8)


def top(features: int) -> int:
    """DLRM's upper layers: pairs of features and of each with the dense vector, beside it."""
    inputs = 8 + (features + 1) * features // 2
    return (inputs * 128 + 128) + (128 * 64 + 64) + (64 + 1)


def budget_of(**model: Any) -> Budget:
    config = TypeAdapter(ModelConfig).validate_python({"embedding_dim": 8, **model})
    context = dict.fromkeys(config.context, ROWS)
    return parameter_budget(config, Sizes(tables_for(config.item), context, 2, (1.0, 2.0), (1.0, 0.5), content=3))


def test_a_model_counted_by_hand() -> None:
    found = budget_of(item={"kind": "hid"})
    assert found == Budget(20, 20 * 8, 20 * 8, BOTTOM + top(3))  # item, history, user


def test_a_shared_table_counts_once() -> None:
    item = {"kind": "hid_and_sid", "granularities": ["s1", "s12"], "fusion": {"kind": "sum"}}
    assert budget_of(item=item).item_rows == 60
    shared = budget_of(item={**item, "index": {"kind": "modulo", "rows": 20}})
    assert shared == Budget(40, 40 * 8, 20 * 8, BOTTOM + top(5))


def test_managed_rows_count_as_others_do() -> None:
    managed = {"hid_index": {"kind": "managed_collision", "rows": ROWS}}
    for kind in ("hid", "sid_coord"):
        assert budget_of(item={"kind": kind, **managed}) == budget_of(item={"kind": kind})


@pytest.mark.parametrize("kind", ["sid", "sid_coord", "hid_and_sid", "gate_sid", "content"])
def test_counts_are_those_of_the_ranker(kind: str) -> None:
    found, ranker = budget_of(item={"kind": kind}), ranker_for(item={"kind": kind})
    counted = found.item_parameters + found.context_parameters + found.dense_parameters
    assert counted == sum(p.numel() for p in ranker.parameters())


def test_counting_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    budget_of()
    assert torch.equal(torch.get_rng_state(), before)
