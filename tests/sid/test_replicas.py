"""Several processes: together they train what one trains, and every one ends up with the same network."""

import warnings

import numpy as np
import torch

from sidrec.config.learner_parts import Training
from sidrec.config.learners import RqVaeConfig
from sidrec.sid.learners.gradient import GradientTokenizer
from sidrec.sid.replicas import JoinedReplicas, current_replicas
from sidrec.sid.tokenizer import SideInformation
from tests.ranks import run_on_ranks
from tests.sid.item_files import clustered_vectors

VECTORS = clustered_vectors(250)
PLAIN = RqVaeConfig(
    levels=2,
    codebook_size=8,
    width=4,
    hidden=(16,),
    training=Training(epochs=4, batch_size=50, revive_every=0, least_utilisation=0),
)


def _exchange(rank: int, world: int) -> tuple[list[float], list[float], list[int], str]:
    replicas = current_replicas()
    assert isinstance(replicas, JoinedReplicas)
    assert (replicas.rank, replicas.size, replicas.first) == (rank, world, rank == 0)
    one, two = torch.tensor([rank + 1.0]), torch.tensor([[10.0 * rank, 4.0]])
    total = replicas.sum(one)
    replicas.average([one, two])
    counts = torch.tensor([rank, 7])
    replicas.broadcast([counts])
    return (
        total.tolist(),
        [*one.tolist(), *two.flatten().tolist()],
        counts.tolist(),
        replicas.broadcast_object(f"of {rank}"),
    )


def test_exchanges_by_hand() -> None:
    """Ranks 0 and 1 hold 1 and 2: total 3, mean 1.5; (0, 4) and (10, 4) average to (5, 4)."""
    assert run_on_ranks(2, _exchange) == [([3.0], [1.5, 5.0, 4.0], [0, 7], "of 0")] * 2


def _fit(rank: int, world: int, revive: bool) -> tuple[dict[str, np.ndarray], tuple[dict[str, object], ...]]:
    warnings.filterwarnings("error", message=".*c10d")  # exchanges that autograd would follow
    training = Training(epochs=4, batch_size=50, revive_every=int(revive), least_utilisation=0)
    config = RqVaeConfig(levels=2, codebook_size=32 if revive else 8, width=4, hidden=(16,), training=training)
    tokenizer = GradientTokenizer.fit(VECTORS, config, 0, SideInformation())
    return tokenizer.arrays(), tokenizer.journal


def test_two_replicas_equal_one_process_on_the_same_global_batches() -> None:
    (ours, journal), (theirs, other_journal) = run_on_ranks(2, _fit, False)
    alone = GradientTokenizer.fit(VECTORS, PLAIN, 0, SideInformation())
    for name, expected in alone.arrays().items():
        assert np.array_equal(ours[name], theirs[name]), name
        assert np.allclose(ours[name], expected, atol=1e-4), name
    assert journal == other_journal
    for found, wanted in zip(journal, alone.journal, strict=True):
        assert found["utilisation"] == wanted["utilisation"]
        assert np.isclose(found["loss"], wanted["loss"], rtol=1e-3)  # type: ignore[call-overload]


def test_revived_codes_are_the_same_on_every_replica() -> None:
    (ours, journal), (theirs, other_journal) = run_on_ranks(2, _fit, True)
    assert sum(int(str(entry["revived_codes"])) for entry in journal) > 0
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert [entry["loss"] for entry in journal] == [entry["loss"] for entry in other_journal]
