"""Scores splits of the log with a trained model and measures the scores."""

import time

import torch
from torchrec.distributed import DistributedModelParallel

from sidrec.checkpoint.train_state import Best, Position
from sidrec.config import Recipe
from sidrec.config.recipe import BestConfig
from sidrec.data.dataset import Dataset
from sidrec.metrics.exact import SplitMetrics, measure, measure_slices
from sidrec.metrics.predictions import PredictionCollector, Predictions
from sidrec.metrics.slices import load_item_slices
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks, run_on_all_ranks, total
from sidrec.schema import ITEMS
from sidrec.train.assembly import open_loader
from sidrec.train.gate_and_attention import GATE, AttentionMeter
from sidrec.train.run_directory import RunDirectory, write_json
from sidrec.train.stopping import Stopping, synced_batches
from sidrec.train.watchdog import Watchdog


def check_splits(recipe: Recipe, data: Dataset, ranks: Ranks) -> None:
    """Refuses, before hours of training, what evaluation would refuse after them: a split or its files, the items.

    Raises ContractError on all ranks together.
    """
    config = recipe.evaluate
    run_on_all_ranks(ranks, lambda: load_item_slices(recipe.data.path / ITEMS, config.head_share, config.tail_share))
    best = recipe.checkpoint.best
    for split in dict.fromkeys((*config.splits, *((best.split,) if best else ()))):
        open_loader(recipe, data, split, shuffle=False, ranks=ranks)


class AbandonedError(Exception):
    """All ranks were told to stop while they evaluated."""


def score_split(
    recipe: Recipe,
    data: Dataset,
    model: DistributedModelParallel,
    split: str,
    ranks: Ranks,
    stopping: Stopping | None = None,
) -> Predictions:
    """Scores every row of a split once; all ranks get all predictions.

    Beside the score: the statistics as of the row's time and, where the model has a gate, its mean value.
    Raises AbandonedError, on all ranks, as soon as `stopping` knows that they are to stop.
    """
    loader = open_loader(recipe, data, split, shuffle=False, ranks=ranks)
    ranker = model.module
    assert isinstance(ranker, Ranker), "DistributedModelParallel keeps the ranker it was given"
    extra = (*data.manifest.stats, *((GATE,) if ranker.gate else ()))
    collector = PredictionCollector(split, extra)
    model.eval()
    started = last = time.monotonic()
    with Watchdog(recipe.train.hang_minutes, recipe.run, ranks), torch.no_grad():
        for step, batch in enumerate(synced_batches(loader.batches(0), loader.steps, ranks, stopping), start=1):
            if stopping and stopping.agreed:
                raise AbandonedError
            ranks.heartbeat.begin(f"step {step} of evaluating {split}")
            on_device = batch.to(ranks.device)
            _, (_, logits_B) = model(on_device)
            values = dict(zip(data.manifest.stats, on_device.stats_BS.unbind(1), strict=True))
            if ranker.gate:
                values[GATE] = ranker.gate.value(on_device.stats_BS).mean(dim=1)
            collector.append(on_device, logits_B, **values)
            if ranks.first and time.monotonic() - last > 5:
                last = time.monotonic()
                left = (last - started) / step * (loader.steps - step)
                print(f"evaluating {split}: step {step}/{loader.steps}  ETA {left:.0f} s", flush=True)
    return collector.gathered(ranks.control, loader.rows, total(ranks, loader.quarantined))


def evaluate_splits(
    recipe: Recipe, data: Dataset, model: DistributedModelParallel, run: RunDirectory, step: int, ranks: Ranks
) -> SplitMetrics:
    """Metrics of every split that the recipe names, and after how many steps the model was that is measured; rank 0
    also writes what the fusion listened to and, if the recipe wants them, the predictions."""
    config = recipe.evaluate
    items = recipe.data.path / ITEMS
    slices = run_on_all_ranks(ranks, lambda: load_item_slices(items, config.head_share, config.tail_share))
    metrics: SplitMetrics = {}
    for split in config.splits:
        with AttentionMeter(model.module) as meter:
            predictions = score_split(recipe, data, model, split, ranks)
        attention = meter.result(ranks)
        if ranks.first and attention:
            write_json(run.attention(split), attention)
        measured = measure_slices(predictions, slices)
        metrics[split] = {name: {**values, "step": step} for name, values in measured.items()}
        if ranks.first and config.save_predictions:
            predictions.save(run.predictions(split))
    return metrics


# Which of a run's checkpoints is the best: a split is evaluated while training goes on.


class BestCheckpoint:
    """Knows when to evaluate, evaluates, and remembers the best value; the same on every rank.

    best: None before the first value. measured: the last step that was evaluated, or 0.
    """

    def __init__(
        self,
        config: BestConfig,
        recipe: Recipe,
        data: Dataset,
        model: DistributedModelParallel,
        position: Position,
        epoch_steps: int,
        ranks: Ranks,
    ) -> None:
        """position: where the run goes on; a best value by another split or metric is none."""
        self._config, self._recipe, self._data, self._model, self._ranks = config, recipe, data, model, ranks
        self._every = config.every or epoch_steps
        before = position.best
        same = before is not None and (before.split, before.metric) == (config.split, config.metric)
        self.best = before if same else None
        self.measured = position.measured if same else 0

    def is_due(self, step: int) -> bool:
        """Whether the split is evaluated after `step` steps of training."""
        return step > self.measured and step % self._every == 0

    def is_best(self, step: int) -> bool:
        """Whether the model after `step` steps is the best so far."""
        return self.best is not None and self.best.step == step

    def steps_to_go(self, step: int) -> int:
        """From `step` to the next evaluation."""
        return self._every - step % self._every

    def evaluate(self, step: int, stopping: Stopping) -> None:
        """Scores all rows of the split with the model as it is after `step` steps. Where the ranks are told to stop
        meanwhile, nothing is measured: the resumed run begins with it."""
        split, metric = self._config.split, self._config.metric
        try:
            scored = score_split(self._recipe, self._data, self._model, split, self._ranks, stopping)
        except AbandonedError:
            return
        value = measure(scored.label_N, scored.score_N, scored.user_N)[metric]
        self.measured = step
        found = "undefined"
        if value is not None:
            found = f"{value:.5f}"
            if self._config.better(value, self.best.value if self.best else None):
                self.best = Best(split, metric, value, step)
                found += ", the best so far"
        if self._ranks.first:
            print(f"step {step}  {split} {metric} {found}", flush=True)
