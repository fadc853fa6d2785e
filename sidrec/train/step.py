"""One training step: next batch, forward, backward to the embeddings, check, backward into the tables, apply.

FBGEMM updates tables inside their backward. The step therefore splits backward at the embeddings: nothing is updated
before all ranks have agreed whether loss and gradients are finite, so that a step is applied or skipped as a whole.
Gradients count as not finite if their norm is not. This includes gradients whose square overflows: all optimizers but
SGD square them.

On a CPU the ranks read this flag at once. On a GPU it stays there (`Ranks.runs_ahead`): it masks the gradients of
tables and stops the fused optimizers, and its copy is read before the next step updates anything. A step that was
skipped is therefore reported during the next one, while all weights are still those it was computed with.

Shapes: B rows of a batch, R rows of a tensor, K gradients.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist, TrainPipelineSparseDist

from sidrec.checkpoint.tensor_shard import TensorShard
from sidrec.config.recipe import TrainConfig
from sidrec.data.batch import Batch, PackedBatch
from sidrec.data.reader import LogReader
from sidrec.data.rows import row_places
from sidrec.errors import NonFiniteError
from sidrec.io.places import Place
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import (
    COMPUTES,
    WAITS,
    HostCopy,
    Ranks,
    gather_objects,
    largest,
    raise_on_all_ranks,
)
from sidrec.parallel.sharding import row_updates, updates_read_by
from sidrec.parallel.update_counts import share_changes
from sidrec.train.non_finite_cause import NAMED, Cause, LookedUp, Values, find_cause, nearest_cause, table_lookups
from sidrec.train.optimizers import ScheduledOptimizer


@dataclass(frozen=True)
class Skipped:
    """A skipped step, counted from 1.

    what: the value that was not finite. rows: file -> numbers of the offending rows, of all ranks. If only gradients
    were not finite, these are the rows with the largest loss.
    """

    step: int
    what: str
    rows: Mapping[Place, list[int]]


@dataclass(frozen=True)
class StepResult:
    """step: its number, from 1. batch: this rank's. terms: `loss` and its parts by name, means over this rank's rows.
    skipped: None if the step was applied; the same on every rank."""

    step: int
    batch: Batch
    terms: Mapping[str, Tensor]
    skipped: Skipped | None


class _Forward(NamedTuple):
    """What the forward pass of a step gives besides its loss: this rank's batch, loss terms and logits."""

    batch: Batch
    terms: Mapping[str, Tensor]
    logits_B: Tensor


class TrainingStep:
    """Runs training steps, on all ranks together.

    `run` shows the order of a step: `zero_grad`, `forward`, backward of the loss down to the embeddings, `step`.
    TorchRec's pipeline calls the same four, this object being its optimizer, and meanwhile sends the next batch's ids
    to the ranks that hold their rows.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizer: ScheduledOptimizer,
        reader: LogReader,
        config: TrainConfig,
        pipeline: Literal["sparse_dist", "prefetch", "plain"],
        done: int,
        ranks: Ranks,
    ) -> None:
        """pipeline: "plain" is the loop in `run`. done: steps of the run so far."""
        ranker = model.module
        assert isinstance(ranker, Ranker), "DistributedModelParallel keeps the ranker it was given"
        self._model, self._optimizer, self._reader, self._config, self._ranks = model, optimizer, reader, config, ranks
        self._lookups = table_lookups(ranker)
        self._layers = {name: p for name, p in ranker.named_parameters() if ".embedding_bags." not in name}
        self._updates, self._updates_copy = row_updates(model), updates_read_by(model)
        self._columns = {"dense_BX": reader.columns.log.dense, "stats_BS": reader.columns.log.stats}
        self._steps_done, self._skips_in_a_row = done, 0
        self._forward: _Forward | None = None
        self._flag = HostCopy(ranks.device)
        self._undecided: Values | None = None  # of the last step, until its flag is read
        self._results: list[StepResult] = []
        self._pipeline = None
        if pipeline != "plain":
            kind = PrefetchTrainPipelineSparseDist if pipeline == "prefetch" else TrainPipelineSparseDist
            self._pipeline = kind(model, self, ranks.device, custom_model_fwd=self.forward)
        self._split_backward(True)

    def run(self, batches: Iterator[PackedBatch]) -> list[StepResult]:
        """Trains on the next batch: updates tables and layers, or nothing on any rank if a value is not finite.

        Returns the steps whose outcome became known: this one, or, on a GPU, the one before it.
        Raises NonFiniteError, on all ranks, if the recipe does not skip such steps, or not so many in a row; on a GPU
        after the next step's backward, before it updates anything.
        """
        if self._pipeline is not None:
            self._pipeline.progress(batches)
        else:
            batch = next(batches).to(self._ranks.device, non_blocking=True)
            self.zero_grad()
            loss, _ = self.forward(batch)
            loss.backward()
            self.step()
        return self._take_results()

    def settle(self) -> list[StepResult]:
        """Waits for the last step's outcome: before anything that depends on it, as a checkpoint or an evaluation.

        Returns what `run` has not returned. Raises as `run` does.
        """
        self._decide()
        return self._take_results()

    def _take_results(self) -> list[StepResult]:
        results, self._results = self._results, []
        return results

    def zero_grad(self) -> None:
        """Clears the gradients of the previous step."""
        self._optimizer.zero_grad()

    def forward(self, batch: Batch | None) -> tuple[Tensor, Any]:
        """Returns the loss and the model's output. Backward of the loss stops at the embeddings."""
        assert batch is not None, "all ranks have equally many batches"
        loss, output = self._model(batch)
        terms, logits_B = output
        self._forward = _Forward(batch, terms, logits_B)
        return loss, output

    def step(self) -> None:
        """After backward: checks loss and gradients, then updates tables and layers, or skips the step."""
        self._decide()  # the previous step, if that is still open: this one has not changed anything yet
        self._steps_done += 1
        values = self._values()
        bad = bad_on_any_rank(_is_bad(values), self._ranks)
        self._flag.send(bad)
        self._undecided = values
        skipped: Tensor | bool = bad
        if not self._ranks.runs_ahead:
            skipped = self._decide() is not None
        self._backward_into_tables(skipped)  # FBGEMM updates them
        self._optimizer.step_unless(skipped)
        for updates in self._updates:
            updates.end_step(skipped=skipped)
        share_changes(self._updates_copy, self._updates, self._ranks)

    def _values(self) -> Values:
        """The step's values, for the check and for a message."""
        assert self._forward is not None, "step follows forward"
        forward, self._forward = self._forward, None
        looked_up = [LookedUp(lookup, lookup.boundary.read(), lookup.boundary.gradient()) for lookup in self._lookups]
        gradients = {name: weight.grad for name, weight in self._layers.items() if weight.grad is not None}
        norms_K = torch.stack(torch._foreach_norm([*gradients.values(), *(found.gradient for found in looked_up)]))
        return Values(*forward, looked_up, self._layers, list(gradients), norms_K, self._columns)

    def _decide(self) -> Skipped | None:
        """Reads the open step's flag, if there is one. Raises as `_skip` does."""
        if self._undecided is None:
            return None
        values, self._undecided = self._undecided, None
        if self._ranks.world > 1:
            self._ranks.heartbeat.beat(WAITS)
        (bad,) = self._flag.receive()
        self._ranks.heartbeat.beat(COMPUTES)
        skipped = self._skip(values) if bad.item() else None
        self._skips_in_a_row = self._skips_in_a_row + 1 if skipped else 0
        self._results.append(StepResult(self._steps_done, values.batch, values.terms, skipped))
        return skipped

    def _backward_into_tables(self, skipped: Tensor | bool) -> None:
        """skipped: with gradients of 0, which change no table; ranks still exchange them, as in every step."""
        boundaries = [lookup.boundary for lookup in self._lookups]
        embeddings = [boundary.embeddings.values() for boundary in boundaries if boundary.embeddings is not None]
        torch.autograd.backward(embeddings, [_zero_if(skipped, boundary.gradient()) for boundary in boundaries])
        for boundary in boundaries:
            boundary.embeddings = boundary.leaf = None

    def _skip(self, values: Values) -> Skipped:
        """Raises NonFiniteError, on all ranks, if the step may not be skipped."""
        cause = nearest_cause(gather_objects(self._ranks, find_cause(values)))
        cause = cause or Cause(6, "gradients whose norm is not finite")
        skipped = Skipped(self._steps_done, cause.what, row_places(self._reader.groups, cause.rows))
        if cause.in_weights or self._config.non_finite == "stop" or self._skips_in_a_row == self._config.skip_at_most:
            raise_on_all_ranks(self._ranks, NonFiniteError(self._message(skipped, cause.in_weights)))
        return skipped

    def _message(self, skipped: Skipped, in_weights: bool) -> str:
        advice = "train.non_finite=skip leaves such steps out"
        if in_weights:
            advice = "lower learning rates may help, from the newest checkpoint on or from the start"
        elif self._skips_in_a_row:
            advice = (
                f"{self._skips_in_a_row} steps before it were left out, and train.skip_at_most allows no more in a row"
            )
        places = f"; {places_text(skipped.rows)}" if skipped.rows else ""
        return f"step {skipped.step}: expected a finite loss and finite gradients, got {skipped.what}{places}; {advice}"

    @property
    def prefetches(self) -> bool:
        """Whether the pipeline fetches batches ahead of their step."""
        return self._pipeline is not None

    @property
    def pipelined(self) -> int:
        """How many table collections have their ids sent ahead of their step."""
        return len(self._pipeline._pipelined_modules) if self._pipeline is not None else 0

    def check_pipelined(self) -> None:
        """Call after the first step: TorchRec silently leaves out a collection that it cannot trace in forward."""
        if self._pipeline is not None:
            expected = sum(isinstance(module, ShardedEmbeddingBagCollection) for module in self._model.modules())
            assert self.pipelined == expected, (
                f"{self.pipelined} of {expected} embedding collections are pipelined: forward hides the rest"
            )

    def pause(self) -> None:
        """Restores the table collections' ordinary forward, for an evaluation, until the next step."""
        if self._pipeline is not None:
            self._pipeline.detach()

    def close(self) -> None:
        """Restores the model's ordinary forward and backward."""
        assert self._undecided is None, "the last step is settled first"
        self.pause()
        self._split_backward(False)

    def _split_backward(self, split: bool) -> None:
        for lookup in self._lookups:
            lookup.boundary.split = split


def _is_bad(values: Values) -> Tensor:
    """Whether this rank's loss or gradients are not finite, float32 0 or 1, on the device."""
    norm = torch.linalg.vector_norm(values.norms_K)
    return (~(torch.isfinite(values.terms["loss"]) & torch.isfinite(norm))).float()


def bad_on_any_rank(bad: Tensor, ranks: Ranks) -> Tensor:
    """The ranks' common flag, float32: 1 if any rank's is. All ranks call it. On a GPU nothing is read."""
    if not ranks.runs_ahead:
        return torch.tensor(float(largest(ranks, int(bad))))
    if ranks.world > 1:
        dist.all_reduce(bad, dist.ReduceOp.MAX)
    return bad


def _zero_if(flag: Tensor | bool, gradient: Tensor) -> Tensor:
    if isinstance(flag, Tensor):
        return gradient.masked_fill(flag > 0, 0)
    return torch.zeros_like(gradient) if flag else gradient


def places_text(rows: Mapping[Place, list[int]]) -> str:
    """Files with their first rows, for a message."""
    return "; ".join(f"{path}, {_rows_text(numbers)}" for path, numbers in rows.items())


def _rows_text(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return f"{'rows' if len(rows) > 1 else 'row'} {', '.join(map(str, rows[:NAMED]))}{more}"


# The check before a checkpoint: an update can overflow float32 although loss and gradients were finite.


def check_state(shards: Sequence[TensorShard], step: int, ranks: Ranks) -> None:
    """Checks this rank's tensor shards before they are saved. All ranks call it. step: steps done.

    Raises NonFiniteError, on all ranks, naming the first shard with a value that is not finite.
    """
    found = next((shard for shard in shards if not _all_finite(shard.values)), None)
    raise_on_all_ranks(ranks, None if found is None else NonFiniteError(_state_message(found, step)))


@torch.no_grad()
def _all_finite(values: Tensor) -> bool:
    """Whether all values are finite. The sum is one fast pass without extra memory; each value is checked only if the
    sum is not finite, which large finite values can cause too."""
    if not values.is_floating_point() or torch.isfinite(values.sum()):
        return True
    return bool(torch.isfinite(values).all())


def _state_message(shard: TensorShard, step: int) -> str:
    where = f"tensor {shard.key}"
    if shard.values.dim() > 1:
        bad_R = ~torch.isfinite(shard.values.detach()).flatten(start_dim=1).all(dim=1)
        where += f", {_rows_text((bad_R.nonzero().flatten() + shard.offset[0]).tolist())}"
    return (
        f"step {step}: expected finite weights and optimizer states to save, got others in {where}; no checkpoint "
        "holds them; lower learning rates may help, from the newest checkpoint on or from the start"
    )
