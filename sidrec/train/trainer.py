"""The training loop: batches through the pipeline, learning rates, checkpoints, progress."""

from collections.abc import Iterator, Mapping
from itertools import islice

import torch
import torchrec
from torch import Tensor
from torch import distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

import sidrec
from sidrec.checkpoint.checkpoint_store import Saver
from sidrec.checkpoint.state import pieces_of
from sidrec.checkpoint.train_state import Position, random_pieces
from sidrec.config import Recipe
from sidrec.data.batch import Batch
from sidrec.data.loader import SplitLoader
from sidrec.parallel.process_group import Ranks, run_on_all_ranks
from sidrec.train.evaluation import Selection
from sidrec.train.optimizers import ScheduledOptimizer, schedule_factor
from sidrec.train.row_ledger import RowLedger, drop_after
from sidrec.train.run_directory import Progress, RunDirectory
from sidrec.train.step import Pipeline, SparseDistPipeline, StepGuard, check_state, guarded_pipeline
from sidrec.train.stopping import Stopping, agreed_batches
from sidrec.train.watchdog import Watchdog

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
        selection: Selection | None = None,
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.loader = loader
        self.model = model
        self.optimizer = optimizer
        self.position = position
        self.ranks = ranks
        self.selection = selection
        self.steps = recipe.train.epochs * loader.steps
        self.terms = LossTerms(position, ranks)
        self.guard = StepGuard(model, optimizer, loader.reader, recipe.train, position.step, ranks)
        self.pipeline = self._pipeline()
        self.stopping = Stopping()
        beside = {path.name: path.read_text() for path in (run.config, run.plan) if path.exists()}
        self.saver = Saver(run.checkpoints, recipe.checkpoint, beside, ranks)
        self.ledger = RowLedger(run.ledger, model, ranks.rank) if recipe.train.row_ledger else None

    def train(self) -> int:
        """Runs the remaining steps. Every table collection must be pipelined, or the run stops at once.

        Returns: 0, or the signal that it stopped for, after a step and with a checkpoint of it, the same on all ranks.
        Raises NonFiniteError, on all ranks, where the recipe has it stop.
        """
        if self.position.step >= self.steps and not self._owes_a_selection():
            return 0
        try:
            with Watchdog(self.recipe.train.hang_minutes, self.run.path, self.ranks), self.stopping:
                self._train()
            return self.stopping.agreed
        except Exception:
            self.saver.leave(LAST_WAIT)  # what is being written may be the newest checkpoint there will be
            raise

    def _train(self) -> None:
        if self.ledger:
            run_on_all_ranks(
                self.ranks, lambda: drop_after(self.run.ledger, self.position.step) if self.ranks.first else None
            )
        progress = Progress(self.run, self.position.step, self.steps) if self.ranks.first else None
        done = self.position.step
        if self._owes_a_selection():
            self._select(done)
            self._save(done, self.position.lr_factor)
        self.model.train()
        batches = self._batches()
        stretch = self._stretch(batches, done)
        while done < self.steps and not self.stopping.agreed:
            factor = schedule_factor(self.recipe.optimizer.schedule, done, self.steps)
            self.optimizer.set_factor(factor)
            self.ranks.pulse.begin(f"step {done + 1} of training")
            terms, _ = self.pipeline.progress(stretch)
            if done == self.position.step:
                self._check_pipelined(self.pipeline)
            if self.guard.skipped is None:
                self.terms.add(terms)
            done += 1
            self._after_step(done, factor, progress)
            if self.selection and self.selection.measured == done:
                stretch = self._stretch(batches, done)
        self.stopping.agree(self.ranks, done, self.steps)
        self.guard.remove()
        self._detach()
        if progress:
            progress.close()

    def _after_step(self, step: int, factor: float, progress: Progress | None) -> None:
        if self.ledger:
            self.ledger.add((step - 1) // self.loader.steps, step, trained=self.guard.skipped is None)
        if progress:
            progress.count(self.loader.rows / self.loader.steps, self.guard.skipped)
        saving = self.recipe.checkpoint
        if step % self.recipe.train.log_every == 0 or step == self.steps:
            terms = self.terms.mean()
            if progress:
                progress.report(step, (step - 1) // self.loader.steps, terms, factor)
        self._select(step)
        due = step % self.loader.steps == 0 or (saving.every and step % saving.every == 0)
        if due or self.stopping.agreed or (self.selection and self.selection.is_best(step)):
            self._save(step, factor)

    def _owes_a_selection(self) -> bool:
        """Whether the process before this one was told to stop when it was to evaluate, and saved instead."""
        return self.selection is not None and self.selection.is_due(self.position.step)

    def _select(self, step: int) -> None:
        """Evaluates, where that is due. Told to stop, a rank has no time for it: the resumed run begins with it."""
        if self.selection and self.selection.is_due(step) and not self.stopping.agreed:
            self._detach()
            self.selection.evaluate(step, self.stopping)
            self.model.train()

    def _detach(self) -> None:
        """Gives the collections their ordinary forward back, until the pipeline's next progress."""
        if isinstance(self.pipeline, SparseDistPipeline):
            self.pipeline.detach()

    def _stretch(self, batches: Iterator[Batch], step: int) -> Iterator[Batch]:
        """The batches up to the next evaluation: a pipeline that looks no further holds none while it is detached."""
        if self.selection and isinstance(self.pipeline, SparseDistPipeline):
            return islice(batches, self.selection.steps_to_go(step))
        return batches

    def _save(self, step: int, factor: float) -> None:
        if self.ledger:
            run_on_all_ranks(self.ranks, self.ledger.flush)
        position = Position(
            step,
            *divmod(step, self.loader.steps),
            self.position.catalog,
            factor,
            self.terms.sums(),
            self.terms.steps,
            self.selection.best if self.selection else None,
            self.selection.measured if self.selection else 0,
            ranks=self.ranks.world,
            versions=VERSIONS,
        )
        pieces = pieces_of(self.model, self.optimizer, self.ranks) + random_pieces(self.ranks)
        check_state(pieces, step, self.ranks)
        self.saver.save(pieces, position, wait=step == self.steps or self.stopping.agreed > 0)

    def _batches(self) -> Iterator[Batch]:
        first = self.position.epoch_step
        for epoch in range(self.position.epoch, self.recipe.train.epochs):
            steps = self.loader.steps - first
            yield from agreed_batches(self.loader.batches(epoch, first), steps, self.ranks, self.stopping)
            first = 0

    def _pipeline(self) -> Pipeline:
        kind = self.recipe.parallel.pipeline
        return guarded_pipeline(kind, self.model, self.optimizer, self.ranks.device, self.guard)

    def _check_pipelined(self, pipeline: Pipeline) -> None:
        if isinstance(pipeline, SparseDistPipeline):
            found = len(pipeline._pipelined_modules)
            expected = sum(isinstance(module, ShardedEmbeddingBagCollection) for module in self.model.modules())
            assert found == expected, (
                f"{found} of {expected} embedding collections are pipelined: forward hides the rest"
            )


# The loss and its parts between two reports.


class LossTerms:
    """Sums this rank's terms over steps; goes on from a checkpoint that was saved between two reports."""

    def __init__(self, position: Position, ranks: Ranks) -> None:
        """Of other ranks than it was saved by, each goes on from their mean: the mean over ranks stays what it was."""
        self._ranks = ranks
        self.steps = position.term_steps
        self._sums: dict[str, Tensor] = {}
        for name, sums in position.terms.items():
            own = sums[ranks.rank] if len(sums) == ranks.world else sum(sums) / len(sums)
            self._sums[name] = torch.tensor(own, dtype=torch.float32, device=ranks.device)

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Adds a step: `loss` and its parts by name, means over this rank's rows."""
        self._sums = {name: term + self._sums.get(name, 0) for name, term in terms.items()}
        self.steps += 1

    def sums(self) -> dict[str, tuple[float, ...]]:
        """Every rank's sums, for a checkpoint. Every rank calls it and gets the same."""
        own = {name: float(value) for name, value in self._sums.items()}
        found: list[dict[str, float]] = [{} for _ in range(self._ranks.world)]
        dist.all_gather_object(found, own, group=self._ranks.control)
        return {name: tuple(of_rank[name] for of_rank in found) for name in own}

    def mean(self) -> dict[str, float]:
        """The mean over ranks and steps, the same on every rank, and empty where no step was added; what follows is
        summed anew."""
        if not self.steps:
            return {}
        means = torch.stack(list(self._sums.values())).cpu() / self.steps
        dist.all_reduce(means, group=self._ranks.control)
        named = {name: mean / self._ranks.world for name, mean in zip(self._sums, means.tolist(), strict=True)}
        self._sums, self.steps = {}, 0
        return named
