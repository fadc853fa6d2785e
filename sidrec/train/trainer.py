"""The training loop: a step (`sidrec.train.step`), the log, an evaluation if due, a checkpoint if due."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice

import torch
import torchrec
from torch import Tensor
from torch import distributed as dist
from torchrec.distributed import DistributedModelParallel

import sidrec
from sidrec.checkpoint.checkpoint_store import Saver
from sidrec.checkpoint.state import state_shards
from sidrec.checkpoint.train_state import Position, random_state_shards
from sidrec.config import Recipe
from sidrec.data.batch import PackedBatch
from sidrec.data.loader import SplitLoader
from sidrec.parallel.process_group import Ranks, gather_objects, run_on_all_ranks
from sidrec.train.evaluation import BestCheckpoint
from sidrec.train.ledger_check import RowLedger, drop_after
from sidrec.train.optimizers import ScheduledOptimizer, schedule_factor
from sidrec.train.progress import Progress, TimeLeft
from sidrec.train.run_directory import RunDirectory
from sidrec.train.step import StepResult, TrainingStep, check_state
from sidrec.train.stopping import Stopping, synced_batches
from sidrec.train.tracking import Tracking
from sidrec.train.watchdog import Watchdog

VERSIONS = {"sidrec": sidrec.__version__, "torch": torch.__version__, "torchrec": torchrec.__version__}
LAST_WAIT = 30.0  # seconds for a checkpoint under way, if training ends with an error


class Trainer:
    """Trains one recipe from a position to the end of its last epoch. All ranks call each method together."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunDirectory,
        loader: SplitLoader,
        model: DistributedModelParallel,
        optimizer: ScheduledOptimizer,
        position: Position,
        ranks: Ranks,
        best: BestCheckpoint | None = None,
        tracking: Tracking | None = None,
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.loader = loader
        self.model = model
        self.optimizer = optimizer
        self.position = position
        self.ranks = ranks
        self.best = best
        self.tracking = tracking or Tracking()
        self.steps = recipe.train.epochs * loader.steps
        self.meter = LossMeter(position, ranks)
        self.stopping = Stopping()
        self.training_step = TrainingStep(
            model, optimizer, loader.reader, recipe.train, recipe.parallel.pipeline, position.step, ranks
        )
        copied = {path.name: path.read_text(encoding="utf-8") for path in (run.config, run.plan) if path.exists()}
        self.saver = Saver(run.checkpoints, recipe.checkpoint, copied, ranks)
        self.ledger = RowLedger(run.ledger, ranks.rank) if recipe.train.row_ledger else None
        self.progress: Progress | None = None

    def train(self) -> int:
        """Runs the remaining steps.

        Returns: 0, or, the same on all ranks, the signal after which it saved a checkpoint and stopped.
        Raises NonFiniteError, on all ranks, as `TrainingStep.run` does.
        """
        if self.position.step >= self.steps and not self._evaluation_is_pending():
            return 0
        try:
            with Watchdog(self.recipe.train.hang_minutes, self.run.path, self.ranks), self.stopping:
                self._train()
            return self.stopping.agreed
        except Exception:
            self.saver.leave(LAST_WAIT)  # no newer checkpoint will follow
            raise

    def _train(self) -> None:
        done = self.position.step
        self._open_logs()
        if self._evaluation_is_pending():
            self._evaluate_if_due(done)
            self._save(done, self.position.lr_factor)
        self.model.train()
        schedule = self.recipe.optimizer.schedule
        batches = self._batches()
        upcoming = self._up_to_evaluation(batches, done)
        while done < self.steps and not self.stopping.agreed:
            self.ranks.heartbeat.begin(f"step {done + 1} of training")
            factor = schedule_factor(schedule, done, self.steps)
            self.optimizer.set_factor(factor)
            decided = self.training_step.run(upcoming)  # next batch, forward, backward, check, apply
            if done == self.position.step:
                self.training_step.check_pipelined()
            done += 1
            if self._ends_at(done):
                decided += self.training_step.settle()
            for result in decided:
                self._log(result)
            if self._evaluate_if_due(done):
                upcoming = self._up_to_evaluation(batches, done)
            self._save_if_due(done, factor)
        self.stopping.agree(self.ranks, done, self.steps)
        self.training_step.close()
        self.loader.close()
        if self.progress:
            self.progress.close()

    def _open_logs(self) -> None:
        if self.ledger:
            run_on_all_ranks(
                self.ranks, lambda: drop_after(self.run.ledger, self.position.step) if self.ranks.first else None
            )
        if self.ranks.first:
            rows = self.loader.rows / self.loader.steps
            left = TimeLeft(self.steps, rows, self._rows_to_evaluate())
            self.progress = Progress(self.run, self.position.step, left, self.steps, self.tracking)

    def _rows_to_evaluate(self) -> Callable[[int], int]:
        """Rows of all evaluations after a number of steps, those at the end included.

        The function holds no reference to the trainer: a cycle would keep the loader's workers running.
        """
        log, best, steps = self.loader.reader.columns.log, self.best, self.steps
        last = sum(log.rows(split) for split in self.recipe.evaluate.splits)
        return lambda step: last + (best.rows_to_come(step, steps) if best else 0)

    def _batches(self) -> Iterator[PackedBatch]:
        first = self.position.epoch_step
        for epoch in range(self.position.epoch, self.recipe.train.epochs):
            steps = self.loader.steps - first
            yield from synced_batches(self.loader.packed_batches(epoch, first), steps, self.ranks, self.stopping)
            first = 0

    def _up_to_evaluation(self, batches: Iterator[PackedBatch], step: int) -> Iterator[PackedBatch]:
        """The batches up to the next evaluation, so that the pipeline does not prefetch across it."""
        if self.best and self.training_step.prefetches:
            return islice(batches, self.best.steps_to_go(step))
        return batches

    def _log(self, result: StepResult) -> None:
        step = result.step
        epoch = (step - 1) // self.loader.steps
        if result.skipped is None:
            self.meter.add(result.terms)
        if self.ledger:
            self.ledger.add(epoch, step, result.batch, trained=result.skipped is None)
        if self.progress:
            self.progress.count(step, self.loader.rows / self.loader.steps, result.skipped)
        if step % self.recipe.train.log_every == 0 or step == self.steps:
            terms = self.meter.mean()
            if self.progress:
                factor = schedule_factor(self.recipe.optimizer.schedule, step - 1, self.steps)
                self.progress.report(step, epoch, terms, factor)

    def _evaluation_is_pending(self) -> bool:
        """Whether an evaluation was due at the position and a signal stopped the run before it."""
        return self.best is not None and self.best.is_due(self.position.step)

    def _evaluate_if_due(self, step: int) -> bool:
        """Returns whether the split was evaluated. After a signal, the resumed run evaluates it."""
        if not self.best or not self.best.is_due(step) or self.stopping.agreed:
            return False
        self.training_step.pause()
        with self.progress.left.evaluating(self.best.rows) if self.progress else nullcontext():
            self.best.evaluate(step, self.stopping)
        if self.progress and self.best.latest:
            self.progress.evaluated(self.best.latest)
        self.model.train()
        return self.best.measured == step

    def _save_if_due(self, step: int, factor: float) -> None:
        if self._save_is_due(step) or (self.best and self.best.is_best(step)):
            self._save(step, factor)

    def _save_is_due(self, step: int) -> bool:
        every = self.recipe.checkpoint.every
        return step % self.loader.steps == 0 or (every > 0 and step % every == 0) or self.stopping.agreed > 0

    def _ends_at(self, step: int) -> bool:
        """Whether something follows `step` that must know whether it was applied: a checkpoint, an evaluation."""
        return self._save_is_due(step) or (self.best is not None and self.best.is_due(step))

    def _save(self, step: int, factor: float) -> None:
        if self.ledger:
            run_on_all_ranks(self.ranks, self.ledger.flush)
        epoch, epoch_step = divmod(step, self.loader.steps)
        position = Position(
            step=step,
            epoch=epoch,
            epoch_step=epoch_step,
            catalog=self.position.catalog,
            lr_factor=factor,
            terms=self.meter.sums(),
            term_steps=self.meter.steps,
            best=self.best.best if self.best else None,
            measured=self.best.measured if self.best else 0,
            ranks=self.ranks.world,
            versions=VERSIONS,
            id_maps=self.position.id_maps,
            inputs=self.position.inputs,
        )
        shards = state_shards(self.model, self.optimizer, self.ranks) + random_state_shards(self.ranks)
        check_state(shards, step, self.ranks)
        self.saver.save(shards, position, wait=step == self.steps or self.stopping.agreed > 0)


class LossMeter:
    """Averages loss terms between two log lines. A checkpoint between them keeps the sums."""

    def __init__(self, position: Position, ranks: Ranks) -> None:
        """position: its sums are continued. If its number of ranks was another, each rank starts from the old ranks'
        mean, which leaves the mean over ranks unchanged."""
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
        found = gather_objects(self._ranks, own)
        return {name: tuple(of_rank[name] for of_rank in found) for name in own}

    def mean(self) -> dict[str, float]:
        """Means over ranks and steps since the last call, the same on every rank. Empty if no step was added."""
        if not self.steps:
            return {}
        means = torch.stack(list(self._sums.values())).cpu() / self.steps
        dist.all_reduce(means, group=self._ranks.control)
        named = {name: mean / self._ranks.world for name, mean in zip(self._sums, means.tolist(), strict=True)}
        self._sums, self.steps = {}, 0
        return named
