"""Evaluation: score splits, measure the scores, choose the best checkpoint, report what gate and attention do.

Shapes: N rows of a split, U item bags, G granularities, D width, H bins of a histogram.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from sidrec.checkpoint.train_state import Best, Position
from sidrec.config import Recipe
from sidrec.config.recipe import BestConfig
from sidrec.data.batch import Batch, PackedBatch
from sidrec.data.dataset import Dataset
from sidrec.id_maps import map_name, source_ids
from sidrec.io.files import write_json
from sidrec.io.places import Place
from sidrec.metrics.exact import SliceMetrics, SplitMetrics, measure, measure_slices
from sidrec.metrics.predictions import SOURCES, PredictionCollector, Predictions, load_predictions
from sidrec.metrics.slices import ItemSlices, recipe_slices
from sidrec.model.history import paths_of
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import HostCopy, Ranks, run_on_all_ranks, total
from sidrec.schema import ContractError
from sidrec.train.assembly import open_loader
from sidrec.train.gate_report import EXPOSURES, GATE, gate_report, gated_rows
from sidrec.train.progress import UNKNOWN, WARM_UP, lines_wanted, print_line, progress_bar
from sidrec.train.run_directory import RunDirectory
from sidrec.train.stopping import Stopping, synced_batches
from sidrec.train.tracking import BINS, Evaluation, Tracking
from sidrec.train.warnings_of_metrics import protocol_warnings
from sidrec.train.watchdog import Watchdog

SECONDS_BETWEEN_LINES = 5.0


def check_splits(recipe: Recipe, data: Dataset, ranks: Ranks) -> None:
    """Checks before training that the splits and items which evaluation reads are there and valid.

    Raises ContractError on all ranks together.
    """
    config = recipe.evaluate
    run_on_all_ranks(ranks, lambda: recipe_slices(recipe))
    if config.save_predictions:
        run_on_all_ranks(ranks, lambda: _check_map_files(recipe.data.path, data))
    best = recipe.checkpoint.best
    for split in dict.fromkeys((*config.splits, *((best.split,) if best else ()))):
        open_loader(recipe, data, split, shuffle=False, ranks=ranks)


def _check_map_files(folder: Place, data: Dataset) -> None:
    for column in SOURCES:
        if column in data.manifest.id_maps and not (folder / map_name(column)).is_file():
            raise ContractError(folder / map_name(column), "the id map that the manifest states", "no such file")


class AbandonedError(Exception):
    """A signal stopped all ranks while they evaluated."""


def score_split(
    recipe: Recipe,
    data: Dataset,
    model: DistributedModelParallel,
    split: str,
    ranks: Ranks,
    stopping: Stopping | None = None,
) -> Predictions:
    """Scores every row of a split once; all ranks get all predictions.

    Extra columns: the statistics as of the row's time and, if the model has a gate, its value.
    Raises AbandonedError, on all ranks, if a signal reached any of them (`stopping`).
    """
    loader = open_loader(recipe, data, split, shuffle=False, ranks=ranks)
    ranker = model.module
    assert isinstance(ranker, Ranker), "DistributedModelParallel keeps the ranker it was given"
    extra = (*data.manifest.stats, *((GATE,) if ranker.gate else ()))
    collector = PredictionCollector(split, extra)
    late = HostCopy(ranks.device)
    model.eval()
    watch = EvaluationProgress(split, loader.steps) if ranks.first else None
    batches = synced_batches(loader.packed_batches(0), loader.steps, ranks, stopping)
    pipelined = ranks.runs_ahead and recipe.parallel.pipeline == "sparse_dist" and not _looks_up_twice(ranker)
    with Watchdog(recipe.train.hang_minutes, recipe.run, ranks), torch.no_grad(), watch or nullcontext():
        ranks.heartbeat.begin(f"step 1 of evaluating {split}")
        for step, (batch, logits_B) in enumerate(_scored(model, batches, pipelined, stopping, ranks), start=1):
            values = dict(zip(data.manifest.stats, batch.stats_BS.unbind(1), strict=True))
            if ranker.gate:
                values[GATE] = ranker.gate_values(batch)
            rows = collector.rows(batch, logits_B, **values)
            if late.sent:  # of the batch before: the device has this one's work
                collector.add(*late.receive())
            late.send(*rows)
            if watch:
                watch.count(step)
            ranks.heartbeat.begin(f"step {step + 1} of evaluating {split}")
        if late.sent:
            collector.add(*late.receive())
    return collector.gathered(ranks.control, loader.rows, total(ranks, loader.quarantined))


def _scored(
    model: DistributedModelParallel,
    batches: Iterator[PackedBatch],
    pipelined: bool,
    stopping: Stopping | None,
    ranks: Ranks,
) -> Iterator[tuple[Batch, Tensor]]:
    """The batches on the device, each with its logits [B]. Raises AbandonedError as `score_split` does.

    pipelined: by the pipeline of training, which sends the next batch and its ids while one is scored.
    """
    scored: list[tuple[Batch, Tensor]] = []

    def forward(batch: Batch | None) -> tuple[Tensor, Any]:
        assert batch is not None, "all ranks have equally many batches"
        loss, output = model(batch)
        scored.append((batch, output[1]))
        return loss, output

    pipeline: Any = None
    if pipelined:  # without an optimizer, which a model in evaluation does not need
        pipeline = TrainPipelineSparseDist(model, None, ranks.device, custom_model_fwd=forward)
    try:
        while True:
            try:
                if pipeline:
                    pipeline.progress(batches)
                else:
                    forward(next(batches).to(ranks.device, non_blocking=True))
            except StopIteration:
                return
            if stopping and stopping.agreed:
                raise AbandonedError
            yield scored.pop()
    finally:
        if pipeline:
            pipeline.detach()


def _looks_up_twice(ranker: Ranker) -> bool:
    """Whether the gate's values need a second lookup of a batch, which a pipeline does not offer."""
    return ranker.gate is not None and ranker.updates is not None and ranker.managed_hids is not None


class EvaluationProgress:
    """A bar on a terminal; elsewhere a line every 5 seconds. On rank 0 only."""

    def __init__(self, split: str, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._steps, self._clock = f"evaluating {split}", steps, clock
        self._first = self._last = clock()
        self._bar = progress_bar(self._what, 0, steps, leave=False)

    def __enter__(self) -> "EvaluationProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def count(self, step: int) -> None:
        """Call after each step. step: from 1."""
        now = self._clock()
        if step == WARM_UP:
            self._first = now
        known = step > WARM_UP
        left = f"{(now - self._first) / (step - WARM_UP) * (self._steps - step):.0f} s" if known else UNKNOWN
        self._bar.set_postfix_str(f"ETA {left}", refresh=False)
        self._bar.update()
        if now - self._last > SECONDS_BETWEEN_LINES:
            self._last = now
            if lines_wanted():
                print_line(f"{self._what}: step {step}/{self._steps}  ETA {left}")


def evaluate_splits(
    recipe: Recipe,
    data: Dataset,
    model: DistributedModelParallel,
    run: RunDirectory,
    step: int,
    ranks: Ranks,
    tracking: Tracking | None = None,
) -> SplitMetrics:
    """Metrics of every split in the recipe. step: the model's number of steps, stored with each metric.

    tracking: also gets the metrics. Rank 0 writes the fusion's attention weights and, if the recipe asks for them, the
    predictions.
    """
    config = recipe.evaluate
    slices = run_on_all_ranks(ranks, lambda: recipe_slices(recipe))
    saves = ranks.first and config.save_predictions
    sources = run_on_all_ranks(ranks, lambda: _source_ids(recipe, data) if saves else {})
    metrics: SplitMetrics = {}
    for split in config.splits:
        with AttentionMeter(model.module) as meter:
            predictions = score_split(recipe, data, model, split, ranks)
        attention = meter.result(ranks)
        if ranks.first and attention:
            write_json(run.attention(split), attention)
        measured = measure_slices(predictions, slices)
        metrics[split] = {name: {**values, "step": step} for name, values in measured.items()}
        if ranks.first and tracking:
            tracking.evaluation(_evaluation(predictions, step, measured, attention))
        if saves:
            predictions.save(run.predictions(split), sources)
    return metrics


def _source_ids(recipe: Recipe, data: Dataset) -> dict[str, pa.ChunkedArray]:
    """The source ids of users and items, where the data folder has maps of them."""
    return {column: source_ids(recipe.data.path, column) for column in SOURCES if column in data.manifest.id_maps}


def _evaluation(
    predictions: Predictions, step: int, measured: SliceMetrics, attention: dict[str, Any] | None
) -> Evaluation:
    extra = gated_rows(predictions.extra)
    return Evaluation(predictions.split, step, measured, extra.get(GATE), extra.get(EXPOSURES), attention)


# The best checkpoint, by a metric of a split that is evaluated during training.


class BestCheckpoint:
    """Evaluates a split during training and remembers the best value; the same on every rank.

    best: None before the first value. measured: the last step that was evaluated, or 0. latest: on rank 0, the last
    evaluation, if it was not abandoned.
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
        score: Callable[..., Predictions] = score_split,
        measure: Callable[..., Mapping[str, float | None]] = measure,
    ) -> None:
        """position: where the run resumes; its best value is dropped if it is of another split or metric.

        score, measure: called in place of `score_split` and `sidrec.metrics.exact.measure`.
        """
        self._config, self._recipe, self._data, self._model, self._ranks = config, recipe, data, model, ranks
        self._score, self._measure = score, measure
        self._every = config.every or epoch_steps
        before = position.best
        same = before is not None and (before.split, before.metric) == (config.split, config.metric)
        self.best = before if same else None
        self.measured = position.measured if same else 0
        self.latest: Evaluation | None = None
        self._slices: ItemSlices | None = None

    def is_due(self, step: int) -> bool:
        """Whether the split is evaluated after `step` steps of training."""
        return step > self.measured and step % self._every == 0

    def is_best(self, step: int) -> bool:
        """Whether the model after `step` steps is the best so far."""
        return self.best is not None and self.best.step == step

    def steps_to_go(self, step: int) -> int:
        """From `step` to the next evaluation."""
        return self._every - step % self._every

    @property
    def rows(self) -> int:
        """Rows of the split."""
        return self._data.manifest.rows(self._config.split)

    def rows_to_come(self, step: int, steps: int) -> int:
        """Rows of the evaluations after `step` steps of a training of `steps`."""
        return self.rows * (steps // self._every - step // self._every)

    def evaluate(self, step: int, stopping: Stopping) -> None:
        """Scores the split with the model after `step` steps and updates `best`.

        Measures nothing if a signal stops the ranks meanwhile; the resumed run then evaluates first.
        """
        split, metric = self._config.split, self._config.metric
        self.latest = None
        try:
            with AttentionMeter(self._model.module) as meter:
                scored = self._score(self._recipe, self._data, self._model, split, self._ranks, stopping)
        except AbandonedError:
            return
        attention = meter.result(self._ranks)
        value = self._measure(scored.label_N, scored.score_N, scored.user_N)[metric]
        if self._ranks.first:
            self.latest = _evaluation(scored, step, measure_slices(scored, self._item_slices()), attention)
        self.measured = step
        found = "undefined"
        if value is not None:
            found = f"{value:.5f}"
            if self._config.better(value, self.best.value if self.best else None):
                self.best = Best(split, metric, value, step)
                found += ", the best so far"
        if self._ranks.first:
            print_line(f"step {step}  {split} {metric} {found}")

    def _item_slices(self) -> ItemSlices:
        if self._slices is None:
            self._slices = recipe_slices(self._recipe)
        return self._slices


# Lines about a split that was evaluated.


def split_report(run: RunDirectory, split: str, measured: SliceMetrics) -> list[str]:
    """Lines for the log about an evaluated split: attention, gate, and warnings. Writes what `gate_report` does."""
    lines = [attention] if (attention := attention_report(run, split)) else []
    path = run.predictions(split)
    if not path.exists():
        return lines
    predictions = load_predictions(path, split)
    lines += protocol_warnings(split, measured, predictions.label_N, predictions.extra)
    return lines + gate_report(run.path, split, predictions)


# Attention over granularities, averaged over the item bags of an evaluation.


COLLAPSED = 0.1
"""Below this share of the largest possible entropy, attention counts as collapsed."""


class AttentionMeter:
    """Sums the attention weights of every item bag that passes the ranker's fusion, between enter and exit."""

    def __init__(self, ranker: nn.Module) -> None:
        """ranker: this rank's Ranker; without a fusion, `result` is None."""
        assert isinstance(ranker, Ranker), "DistributedModelParallel keeps the ranker it was given"
        self.fusion = ranker.fusion
        self.names = ranker.item.sids
        self._paths = ranker.paths
        self._watch = ExitStack()
        # the last two entries: summed entropy in nats, and the number of bags
        self.sums = torch.zeros(len(self.names) + 2, dtype=torch.float64)
        self.counts_GH = torch.zeros(len(self.names), BINS, dtype=torch.float64)  # bags by weight, in H bins of [0, 1]

    def __enter__(self) -> "AttentionMeter":
        if self.fusion:
            self._watch.enter_context(self.fusion.watch(self._count))
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()

    def _count(self, granules_UGD: Tensor, *others: Tensor | None) -> None:
        """Adds on the weights' device, and reads nothing from a GPU: padding bags keep their place there.

        Takes the arguments of the fusion's `weights`.
        """
        assert self.fusion is not None, "a fusion calls it"
        looked_up_U = granules_UGD.abs().sum(dim=(1, 2)) > 0  # padding bags are zero
        weights_UG = self.fusion.weights(granules_UGD, *others).double()
        if (self._paths or paths_of(weights_UG.device)).balanced:
            weights_UG = torch.where(looked_up_U.unsqueeze(1), weights_UG, 0)
        else:
            weights_UG, looked_up_U = weights_UG[looked_up_U], looked_up_U[looked_up_U]
        entropy = -torch.xlogy(weights_UG, weights_UG).sum()
        self.sums = self.sums.to(weights_UG.device)
        self.sums += torch.cat([weights_UG.sum(dim=0), torch.stack([entropy, looked_up_U.sum().double()])])
        first_G = BINS * torch.arange(len(self.names), device=weights_UG.device)
        bin_UG = (weights_UG * BINS).long().clamp_(max=BINS - 1) + first_G
        self.counts_GH = self.counts_GH.to(weights_UG.device)
        self.counts_GH.view(-1).index_add_(
            0, bin_UG.flatten(), looked_up_U.double().repeat_interleave(len(self.names), output_size=bin_UG.numel())
        )

    def result(self, ranks: Ranks) -> dict[str, Any] | None:
        """Mean weight and histogram per granularity and mean entropy over all ranks' bags; None without fusion.

        All ranks call it.
        """
        self.sums, self.counts_GH = self.sums.cpu(), self.counts_GH.cpu()
        dist.all_reduce(self.sums, group=ranks.control)
        dist.all_reduce(self.counts_GH, group=ranks.control)
        bags = float(self.sums[-1])
        if self.fusion is None or not bags:
            return None
        weights = (self.sums[:-2] / bags).tolist()
        entropy, largest = float(self.sums[-2]) / bags, math.log(len(self.names))
        return {
            "weights": dict(zip(self.names, weights, strict=True)),
            "entropy_nats": entropy,
            "largest_entropy_nats": largest,
            "collapsed": len(self.names) > 1 and entropy < COLLAPSED * largest,
            "histogram": dict(zip(self.names, self.counts_GH.long().tolist(), strict=True)),
        }


def attention_report(run: RunDirectory, split: str) -> str | None:
    """A line about attention_<split>.json for the log; None for runs without fusion."""
    path = run.attention(split)
    if not path.exists():
        return None
    attention = json.loads(path.read_text(encoding="utf-8"))
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in attention["weights"].items())
    entropy = f"entropy {attention['entropy_nats']:.2f} of {attention['largest_entropy_nats']:.2f} nats"
    collapsed = "; COLLAPSED onto one granularity" if attention["collapsed"] else ""
    return f"attention over granularities on {split}: {weights}; {entropy}{collapsed}"
