"""TorchRec's training pipelines, with a backward that keeps what is not finite out of tables and layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.utils import get_total_norm
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

from sidrec.checkpoint.tensor_shard import Piece
from sidrec.config.recipe import TrainConfig
from sidrec.data.batch import Batch
from sidrec.data.reader import LogReader
from sidrec.data.rows import row_places
from sidrec.errors import NonFiniteError
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks, largest, raise_on_all_ranks
from sidrec.train.non_finite_cause import NAMED, Finding, Step, cuts_of, find_cause, into_tables, joined
from sidrec.train.optimizers import ScheduledOptimizer

# A loss or gradient that is not finite: the step is left out whole, or training stops with what, where and which rows.
#
# Whether gradients are finite is seen from their norm, and so are gradients whose square is not: every optimizer here
# but SGD squares them.


@dataclass(frozen=True)
class Skipped:
    """A step that was left out. rows: file -> the rows in it that were at fault, of all ranks: all of them where rows,
    weights or logits were not finite, the likeliest where only gradients were not."""

    step: int
    what: str
    rows: Mapping[Path, list[int]]


class StepGuard:
    """Runs the backward of every step, on all ranks together, and keeps it out of tables and layers where it is not
    finite.

    skipped: how the last step was left out, or None where it was not; the same on every rank.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizer: ScheduledOptimizer,
        reader: LogReader,
        config: TrainConfig,
        step: int,
        ranks: Ranks,
    ) -> None:
        """step: steps done so far."""
        ranker = model.module
        assert isinstance(ranker, Ranker), "DistributedModelParallel keeps the ranker it was given"
        self._optimizer, self._reader, self._config, self._ranks = optimizer, reader, config, ranks
        self._cuts = cuts_of(ranker)
        self._layers = {name: p for name, p in ranker.named_parameters() if ".embedding_bags." not in name}
        self._columns = {"dense_BX": reader.columns.log.dense, "stats_BS": reader.columns.log.stats}
        self._hook = model.register_forward_hook(self._see)
        self._seen: tuple[Batch, Mapping[str, Tensor], Tensor] | None = None
        self._step = step
        self._in_a_row = 0
        self.skipped: Skipped | None = None

    def _see(self, model: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if model.training:
            self._seen = (arguments[0], *output[1])

    def backward(self, loss: Tensor) -> None:
        """The step's backward; tables are updated in it, layers have their gradients after it.

        Raises NonFiniteError, on all ranks, where the recipe does not want such steps left out, or not that many.
        """
        self._step += 1
        loss.sum().backward()  # type: ignore[no-untyped-call]
        gradients = [weight.grad for weight in self._layers.values() if weight.grad is not None]
        norm = get_total_norm([*gradients, *(cut.gradient() for cut in self._cuts)])
        finite = bool(torch.isfinite(loss.sum()) & torch.isfinite(norm))
        self.skipped = self._skip() if largest(self._ranks, int(not finite)) else None
        self._in_a_row = self._in_a_row + 1 if self.skipped else 0
        into_tables(self._cuts, zero=self.skipped is not None)
        if self.skipped:
            self._optimizer.zero_grad(set_to_none=True)  # what has no gradient is not updated
        self._seen = None

    def remove(self) -> None:
        """Lets the model be as it was."""
        self._hook.remove()
        for cut in self._cuts:
            cut.remove()

    def _skip(self) -> Skipped:
        assert self._seen is not None, "backward follows forward"
        own = find_cause(Step(*self._seen, self._cuts, self._layers, self._columns))
        findings: list[Finding | None] = [None] * self._ranks.world
        dist.all_gather_object(findings, own, group=self._ranks.control)
        finding = joined(findings) or Finding(6, "gradients whose norm is not finite")
        skipped = Skipped(self._step, finding.what, row_places(self._reader.groups, finding.rows))
        if finding.in_weights or self._config.non_finite == "stop" or self._in_a_row == self._config.skip_at_most:
            raise_on_all_ranks(self._ranks, NonFiniteError(self._sentence(skipped, finding.in_weights)))
        return skipped

    def _sentence(self, skipped: Skipped, in_weights: bool) -> str:
        advice = "train.non_finite=skip leaves such steps out"
        if in_weights:
            advice = "lower learning rates may help, from the newest checkpoint on or from the start"
        elif self._in_a_row:
            advice = f"{self._in_a_row} steps before it were left out, and train.skip_at_most allows no more in a row"
        places = f"; {places_text(skipped.rows)}" if skipped.rows else ""
        return f"step {skipped.step}: expected a finite loss and finite gradients, got {skipped.what}{places}; {advice}"


class _Guarded:
    guard: StepGuard

    def _backward(self, losses: Tensor) -> None:
        self.guard.backward(losses)


class PlainPipeline(_Guarded, TrainPipelineBase):
    """One batch after the other."""


class SparseDistPipeline(_Guarded, TrainPipelineSparseDist):
    """The next batch's ids travel to their ranks while this one is computed."""


Pipeline = PlainPipeline | SparseDistPipeline


KINDS: dict[Literal["sparse_dist", "plain"], type[PlainPipeline] | type[SparseDistPipeline]] = {
    "sparse_dist": SparseDistPipeline,
    "plain": PlainPipeline,
}


def guarded_pipeline(
    kind: Literal["sparse_dist", "plain"],
    model: DistributedModelParallel,
    optimizer: ScheduledOptimizer,
    device: torch.device,
    guard: StepGuard,
) -> Pipeline:
    """The pipeline of that kind, whose steps `guard` runs backward."""
    pipeline = KINDS[kind](model, optimizer, device)
    pipeline.guard = guard
    return pipeline


def places_text(rows: Mapping[Path, list[int]]) -> str:
    """Files and the first of the rows in each, in words."""
    texts = []
    for path, numbers in rows.items():
        more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
        texts.append(f"{path}, {'rows' if len(numbers) > 1 else 'row'} {', '.join(map(str, numbers[:NAMED]))}{more}")
    return "; ".join(texts)


# What a checkpoint must not hold: weights or optimizer states that are not finite.
#
# A step may be finite and still leave such behind, where a learning rate takes a weight out of float32's range.
#
# Shapes: R rows.


def check_state(pieces: Sequence[Piece], step: int, ranks: Ranks) -> None:
    """Refuses to go on from a state that is not finite. step: steps done, for the sentence.

    Every rank calls it with its pieces. Raises NonFiniteError, on all ranks, naming the first such piece.
    """
    found = next((piece for piece in pieces if not _is_finite(piece.values)), None)
    raise_on_all_ranks(ranks, None if found is None else NonFiniteError(_sentence(found, step)))


@torch.no_grad()
def _is_finite(values: Tensor) -> bool:
    """A sum in which a value is not finite is not finite either, and costs one fast pass and no memory. That of finite
    values is, except on the brink: then each is looked at."""
    if not values.is_floating_point() or torch.isfinite(values.sum()):
        return True
    return bool(torch.isfinite(values).all())


def _sentence(piece: Piece, step: int) -> str:
    where = f"tensor {piece.key}"
    if piece.values.dim() > 1:
        bad_R = ~torch.isfinite(piece.values.detach()).flatten(start_dim=1).all(dim=1)
        rows = (bad_R.nonzero().flatten() + piece.offset[0]).tolist()
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        where += f", {'rows' if len(rows) > 1 else 'row'} {', '.join(map(str, rows[:NAMED]))}{more}"
    return (
        f"step {step}: expected finite weights and optimizer states to save, got others in {where}; no checkpoint "
        "holds them; lower learning rates may help, from the newest checkpoint on or from the start"
    )
