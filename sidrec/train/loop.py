"""The training loop: batches through the pipeline, learning rates, checkpoints, progress."""

from collections.abc import Iterator

import torch
from torch import distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

from sidrec.config import Recipe
from sidrec.data.batch import Batch
from sidrec.data.loader import SplitLoader
from sidrec.parallel.process_group import Ranks, together
from sidrec.train import checkpoint
from sidrec.train.agreed_batches import agreed_batches
from sidrec.train.checkpoint import Position
from sidrec.train.optimizers import ScheduledOptimizer, schedule_factor
from sidrec.train.progress import Progress
from sidrec.train.row_ledger import RowLedger, drop_after
from sidrec.train.run_directory import RunDirectory


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
        self.terms: dict[str, torch.Tensor] = {}
        self.term_steps = 0
        self.ledger = RowLedger(run.ledger, model, ranks.rank) if recipe.train.row_ledger else None

    def train(self) -> None:
        """Runs the remaining steps. Every table collection must be pipelined, or the run stops at once."""
        if self.position.step >= self.steps:
            return
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
            self.terms = {name: term + self.terms.get(name, 0) for name, term in terms.items()}
            self.term_steps += 1
            self._after_step(step + 1, factor, progress)
        if isinstance(pipeline, TrainPipelineSparseDist):
            pipeline.detach()  # gives the collections their ordinary forward back, for evaluation
        if progress:
            progress.close()

    def _after_step(self, step: int, factor: float, progress: Progress | None) -> None:
        epoch, epoch_step = divmod(step, self.loader.steps)
        if self.ledger:
            self.ledger.add((step - 1) // self.loader.steps, step)
        if progress:
            progress.count(self.loader.rows / self.loader.steps)
        saving = self.recipe.checkpoint
        if step % self.recipe.train.log_every == 0 or step == self.steps:
            terms = self._mean_terms()
            if progress:
                progress.report(step, (step - 1) // self.loader.steps, terms, factor)
        if epoch_step == 0 or (saving.every and step % saving.every == 0):
            if self.ledger:
                together(self.ranks, self.ledger.flush)
            position = Position(step, epoch, epoch_step, self.position.catalog)
            checkpoint.save(self.run.checkpoints, self.model, self.optimizer, position, saving.keep, self.ranks)

    def _mean_terms(self) -> dict[str, float]:
        """Mean of the loss and its terms over ranks and the steps since the last call; the same on every rank."""
        means = torch.stack(list(self.terms.values())).cpu() / self.term_steps
        dist.all_reduce(means, group=self.ranks.control)
        named = {name: mean / self.ranks.world for name, mean in zip(self.terms, means.tolist(), strict=True)}
        self.terms, self.term_steps = {}, 0
        return named

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
