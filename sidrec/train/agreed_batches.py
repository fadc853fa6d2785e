"""Batches that all ranks can use together: equally many item bags on every rank, or an error on every rank."""

from collections.abc import Iterator

from sidrec.data.batch import Batch
from sidrec.data.collate import pad_items
from sidrec.parallel.process_group import Ranks, agree, largest

FAILED = 1 << 40  # more bags than any batch has


def agreed_batches(batches: Iterator[Batch], steps: int, ranks: Ranks) -> Iterator[Batch]:
    """Yields `steps` batches, padded with empty item bags to the count of the rank that has most.

    One small all-reduce per step carries both that count and whether some rank failed to make its batch, so that no
    rank waits in a collective for one that has left. Raises this rank's error, or RankError with another's.
    """
    for _ in range(steps):
        batch: Batch | None = None
        error: Exception | None = None
        try:
            batch = next(batches)
        except Exception as problem:
            error = problem if not isinstance(problem, StopIteration) else RuntimeError("the reader ended too early")
        bags = largest(ranks, FAILED if batch is None else batch.bags)
        if bags == FAILED:
            agree(ranks, error)
        assert batch is not None, "agree raises where a rank failed"
        yield pad_items(batch, bags)
