"""Trainers that end in the middle of a training, as if the process had been killed."""

from sidrec.train.trainer import Trainer


class StoppedError(Exception):
    """Ends a training."""


def stopped_at(stop: int) -> type[Trainer]:
    """A trainer that ends after `stop` steps, a checkpoint just begun if one is due."""

    class Stopped(Trainer):
        def _save_if_due(self, step: int, factor: float) -> None:
            super()._save_if_due(step, factor)
            if step == stop:
                raise StoppedError

    return Stopped
