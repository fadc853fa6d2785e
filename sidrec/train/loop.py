"""The training loop: batches through the pipeline, learning rates, checkpoints, progress."""

from collections.abc import Iterator

import torch
import torchrec
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

import sidrec
from sidrec.checkpoint.model_pieces import pieces_of
from sidrec.checkpoint.position import Position
from sidrec.checkpoint.random_state import random_pieces
from sidrec.checkpoint.saver import Saver
from sidrec.config import Recipe
from sidrec.data.batch import Batch
from sidrec.data.loader import SplitLoader
from sidrec.parallel.process_group import Ranks, together
from sidrec.train.agreed_batches import agreed_batches
from sidrec.train.loss_terms import LossTerms
from sidrec.train.optimizers import ScheduledOptimizer, schedule_factor
from sidrec.train.progress import Progress
from sidrec.train.row_ledger import RowLedger, drop_after
from sidrec.train.run_directory import RunDirectory

VERSIONS = {"sidrec": sidrec.__version__, "torch": torch.__version__, "torchrec": torchrec.__version__}
LAST_WAIT = 30.0  # seconds


class Trainer:
    """Trains one recipe from a position to the end of its last epoch."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunDirectory,
        loader: SplitLoader,
        model: DistributedModelParallel,
        optimizer: ScheduledOptimizer,
        position: Position,
        ranks: Ranks,
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.loader = loader
        self.model = model
        self.optimizer = optimizer
        self.position = position
        self.ranks = ranks
        self.steps = recipe.train.epochs * loader.steps
        self.terms = LossTerms(position, ranks)
        beside = {path.name: path.read_text() for path in (run.config, run.plan) if path.exists()}
        self.saver = Saver(run.checkpoints, recipe.checkpoint, beside, ranks)
        self.ledger = RowLedger(run.ledger, model, ranks.rank) if recipe.train.row_ledger else None

    def train(self) -> None:
        """Runs the remaining steps. Every table collection must be pipelined, or the run stops at once."""
        if self.position.step >= self.steps:
            return
        try:
            self._train()
        except Exception:
            self.saver.leave(LAST_WAIT)  # what is being written may be the newest checkpoint there will be
            raise

    def _train(self) -> None:
        if self.ledger:
            together(self.ranks, lambda: drop_after(self.run.ledger, self.position.step) if self.ranks.first else None)
        pipeline = self._pipeline()
        progress = Progress(self.run, self.position.step, self.steps) if self.ranks.first else None
        self.model.train()
        batches = self._batches()
        for step in range(self.position.step, self.steps):
            factor = schedule_factor(self.recipe.optimizer.schedule, step, self.steps)
            self.optimizer.set_factor(factor)
            terms, _ = pipeline.progress(batches)
            if step == self.position.step:
                self._check_pipelined(pipeline)
            self.terms.add(terms)
            self._after_step(step + 1, factor, progress)
        if isinstance(pipeline, TrainPipelineSparseDist):
            pipeline.detach()  # gives the collections their ordinary forward back, for evaluation
        if progress:
            progress.close()

    def _after_step(self, step: int, factor: float, progress: Progress | None) -> None:
        if self.ledger:
            self.ledger.add((step - 1) // self.loader.steps, step)
        if progress:
            progress.count(self.loader.rows / self.loader.steps)
        saving = self.recipe.checkpoint
        if step % self.recipe.train.log_every == 0 or step == self.steps:
            terms = self.terms.mean()
            if progress:
                progress.report(step, (step - 1) // self.loader.steps, terms, factor)
        if step % self.loader.steps == 0 or (saving.every and step % saving.every == 0):
            self._save(step, factor)

    def _save(self, step: int, factor: float) -> None:
        if self.ledger:
            together(self.ranks, self.ledger.flush)
        position = Position(
            step,
            *divmod(step, self.loader.steps),
            self.position.catalog,
            factor,
            self.terms.sums(),
            self.terms.steps,
            ranks=self.ranks.world,
            versions=VERSIONS,
        )
        pieces = pieces_of(self.model, self.optimizer, self.ranks) + random_pieces(self.ranks)
        self.saver.save(pieces, position, wait=step == self.steps)

    def _batches(self) -> Iterator[Batch]:
        first = self.position.epoch_step
        for epoch in range(self.position.epoch, self.recipe.train.epochs):
            yield from agreed_batches(self.loader.batches(epoch, first), self.loader.steps - first, self.ranks)
            first = 0

    def _pipeline(self) -> TrainPipelineBase | TrainPipelineSparseDist:
        kinds = {"sparse_dist": TrainPipelineSparseDist, "plain": TrainPipelineBase}
        return kinds[self.recipe.parallel.pipeline](self.model, self.optimizer, self.ranks.device)

    def _check_pipelined(self, pipeline: TrainPipelineBase | TrainPipelineSparseDist) -> None:
        if isinstance(pipeline, TrainPipelineSparseDist):
            found = len(pipeline._pipelined_modules)
            expected = sum(isinstance(module, ShardedEmbeddingBagCollection) for module in self.model.modules())
            assert found == expected, (
                f"{found} of {expected} embedding collections are pipelined: forward hides the rest"
            )
