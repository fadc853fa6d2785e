"""Batches that all ranks can use together: equally many item bags on every rank, or an error on every rank."""

from collections.abc import Iterator

from sidrec.data.batch import Batch
from sidrec.data.collate import pad_items
from sidrec.parallel.process_group import Ranks, agree, largest_each
from sidrec.parallel.pulse import READS
from sidrec.train.stopping import Stopping

FAILED = 1 << 40  # more bags than any batch has


def agreed_batches(
    batches: Iterator[Batch], steps: int, ranks: Ranks, stopping: Stopping | None = None
) -> Iterator[Batch]:
    """Yields `steps` batches, padded with empty item bags to the count of the rank that has most.

    One small all-reduce per step carries that count, whether some rank failed to make its batch, so that no rank waits
    in a collective for one that has left, and whether some rank was told to stop, which `stopping` then knows on every
    rank. Raises this rank's error, or RankError with another's.
    """
    for _ in range(steps):
        ranks.pulse.beat(READS)
        batch: Batch | None = None
        error: Exception | None = None
        try:
            batch = next(batches)
        except Exception as problem:
            error = problem if not isinstance(problem, StopIteration) else RuntimeError("the reader ended too early")
        told = stopping.told if stopping else 0
        bags, told = largest_each(ranks, [FAILED if batch is None else batch.bags, told])
        if stopping:
            stopping.agreed = told
        if bags == FAILED:
            agree(ranks, error)
        assert batch is not None, "agree raises where a rank failed"
        yield pad_items(batch, bags)
