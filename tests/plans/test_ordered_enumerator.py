"""The same tables get their options in the same order in every process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRINTS = """
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import ParameterConstraints, Topology
from torchrec.distributed.types import ShardingType
from sidrec.plans.options import OrderedEnumerator
table = EmbeddingBagConfig(name="hid", embedding_dim=16, num_embeddings=400, feature_names=["hid"])
constraints = {"hid": ParameterConstraints(sharding_types=[kind.value for kind in ShardingType])}
enumerator = OrderedEnumerator(Topology(world_size=4, compute_device="cpu"), batch_size=16, constraints=constraints)
options = enumerator.enumerate(EmbeddingBagCollection(tables=[table]), [EmbeddingBagCollectionSharder()])
print([(option.sharding_type, option.compute_kernel) for option in options])
"""


def printed(seed: int) -> str:
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-c", PRINTS]
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


def test_options_do_not_depend_on_how_python_orders_sets() -> None:
    first = printed(1)
    assert "table_wise" in first
    assert "column_wise" in first
    assert first == printed(2) == printed(3)
